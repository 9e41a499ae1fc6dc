"""Data as it is measured: spread evenly, and with nothing drawn at random."""
import json

import numpy as np
import pytest
from pipelines.toy_task import TOKENIZER

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import Decode
from diffusion_jax.data.latents import ABOUT
from diffusion_jax.runs import held_out

DIGITS = "diffusion_jax.data.digits:Digits"
DECODE = "diffusion_jax.data.image:Decode"
BPE = "diffusion_jax.data.caption_bpe:CaptionBPE"


def section(**decode):
    return {"train": {"name": DIGITS, "split": "train"}, "test": {"name": DIGITS, "split": "test"},
            "decode": {"name": DECODE, "size": 8, "channels": 1, **decode}}


def test_nothing_is_drawn_at_random():
    decode = {"name": DECODE, "size": 8, "flip": True, "crop": "random", "tokenizer": {"name": BPE, "dropout": 0.1, "length": 9}}
    assert held_out.still(decode) == {
        "name": DECODE, "size": 8, "flip": False, "crop": "center", "tokenizer": {"name": BPE, "dropout": 0.0, "length": 9}}
    assert decode["flip"] and decode["crop"] == "random" and decode["tokenizer"]["dropout"] == 0.1
    for plain in ({"name": DECODE, "size": 8}, {"name": DECODE, "size": 8, "crop": "none", "tokenizer": TOKENIZER},
                  {"name": DECODE, "size": 8, "tokenizer": None}):
        assert held_out.still(plain) == plain


def test_mirrors_and_random_crops_are_left_out_of_what_is_read():
    images, labels = held_out.pictures(section(flip=True, crop="random"), "test", 6)
    source, decode = Digits("test"), Decode(8, channels=1)
    rows = [decode(source[i * 297 // 6]) for i in range(6)]
    np.testing.assert_array_equal(images, [row["image"] for row in rows])
    np.testing.assert_array_equal(labels, [row["label"] for row in rows])
    again, _ = held_out.pictures(section(flip=True, crop="random"), "test", 6)
    np.testing.assert_array_equal(images, again)


def test_some_are_spread_over_a_split_that_is_sorted():
    _, labels = held_out.pictures(section(), "test", 100)
    counts = np.bincount(labels, minlength=10)
    assert len(labels) == 100 and counts.min() >= 5
    everything, _ = held_out.pictures(section(), "test")
    assert len(everything) == 297 and len(held_out.pictures(section(), "test", 1000)[0]) == 297


def test_batches_hold_what_a_model_reads_and_the_last_may_be_smaller():
    parts = list(held_out.batches(section(tokenizer=TOKENIZER), "test", 7, 3))
    assert [len(part["image"]) for part in parts] == [3, 3, 1] and all(set(part) == {"image", "tokens"} for part in parts)
    images, _ = held_out.pictures(section(), "test", 7)
    np.testing.assert_allclose(np.concatenate([part["image"] for part in parts]), images / 127.5 - 1, atol=1e-6)
    assert [len(part["image"]) for part in held_out.batches(section(), "test", 6, 3)] == [3, 3]
    assert set(next(held_out.batches(section(), "train", 2, 2))) == {"image"}


def test_samples_of_latents_are_measured_against_the_pictures_that_these_were_made_of(tmp_path):
    latents = "diffusion_jax.data.latents"
    data = {split: {"name": f"{latents}:Latents", "path": str(tmp_path), "split": split} for split in ("train", "test")}
    data["decode"] = {"name": f"{latents}:Draw", "path": str(tmp_path)}

    def written(**more):
        (tmp_path / ABOUT).write_text(json.dumps({"names": None, "mean": [0.0], "std": [1.0], **more}))

    written(pictures=section())
    assert held_out.of_pictures(data) == section() and held_out.of_pictures(section()) == section()
    for older in ({}, {"pictures": None}, {"pictures": {"train": section()["train"]}}):
        written(**older)
        assert held_out.of_pictures(data) == data
    written(pictures=section() | {"train": {"name": "os:system", "command": f"touch {tmp_path}/made"}})
    with pytest.raises(ConfigError, match="os:system"):
        held_out.of_pictures(data)
    assert not (tmp_path / "made").exists()


def test_captions_come_again_where_there_are_fewer(monkeypatch):
    source = Digits("test")
    assert held_out.captions(section(), 3) == [source[i]["caption"] for i in (0, 99, 198)]
    texts = held_out.captions(section(), 600)
    assert len(texts) == 600 and texts[297:594] == texts[:297] and texts[594:] == texts[:6]
    assert held_out.captions(section(), 2, "train") == [Digits("train")[i]["caption"] for i in (0, 750)]


def test_captions_that_are_too_long_are_cut_where_they_are_measured():
    """Whatever the class does in training: nobody can shorten what is held out."""
    for tokenizer in ({"name": BPE, "merges": "", "length": 5}, {"name": "diffusion_jax.data.words:Bytes", "length": 5},
                      {"name": "diffusion_jax.data.clip_bpe:ClipBPE", "merges": "", "context": 5}):
        tokens = next(held_out.batches(section(tokenizer=tokenizer), "test", 3, 3))["tokens"]
        assert tokens.shape == (3, 5) and tokens.all()


def test_a_split_without_records_is_refused_and_a_bad_one_named(monkeypatch):
    for ask in (held_out.pictures, held_out.captions):
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match="holds no records; check its path and split"):
            patch.setattr(Digits, "__len__", lambda self: 0)
            ask(*((section(), "test") if ask is held_out.pictures else (section(), 3)))
    monkeypatch.setattr(Digits, "__getitem__", lambda self, i: {"image": np.zeros((2, 0, 1), np.uint8), "caption": 5})
    with pytest.raises(ConfigError, match="^record 0 of Digits.*: an image is uint8"):
        held_out.pictures(section(), "test", 2)
    with pytest.raises(ConfigError, match="^record 0 of Digits.*: caption 5 is no text"):
        held_out.captions(section(), 2)


def test_data_without_captions_is_refused(monkeypatch):
    monkeypatch.setattr(Digits, "__getitem__", lambda self, i: {"image": np.zeros((8, 8, 1), np.uint8)})
    with pytest.raises(ConfigError, match="this model reads captions: give data that has them, or a --prompt"):
        held_out.captions(section(), 3)
    images, labels = held_out.pictures(section(), "test", 2)
    assert images.shape == (2, 8, 8, 1) and labels is None
