"""A data set looked over before training, against counts by hand."""
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data import survey
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.data.caption_bpe import CaptionBPE
from diffusion_jax.data.clip_bpe import ClipBPE
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.glide_bpe import GlideBPE
from diffusion_jax.data.pictures import save_png
from diffusion_jax.data.words import Bytes, Words
from diffusion_jax.train.resume import check_config

IMAGE = np.zeros((8, 8, 1), np.uint8)


@dataclass(frozen=True)
class Read:
    """A source whose records must be read to know them; it counts how many were."""

    labels_of: tuple = ()
    captions_of: tuple = ()
    names = None
    asked: ClassVar[list] = []

    def __len__(self):
        return len(self.labels_of or self.captions_of)

    def __getitem__(self, i):
        self.asked.append(i)
        record = {"image": IMAGE}
        if self.labels_of:
            record["label"] = self.labels_of[i]
        if self.captions_of:
            record["caption"] = self.captions_of[i]
        return record


def listed(folder, **columns):
    """A folder of images that metadata.jsonl lists."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for i in range(len(rows)):
        save_png(folder / f"{i}.png", IMAGE)
    lines = [json.dumps({"file_name": f"{i}.png", **row}) for i, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return Folder(str(folder))


def arrays(folder, **columns):
    np.savez(folder / "x.npz", image=np.stack([IMAGE] * len(next(iter(columns.values())))), **columns)
    return Arrays(str(folder / "x.npz"))


@pytest.mark.parametrize(("make", "says"), [
    (lambda folder: listed(folder, label=[0, 1, 1000]), r"metadata.jsonl:3 \(2.png\): label 1000 is none of .* 10 classes"),
    (lambda folder: listed(folder, label=[10, 0]), r"metadata.jsonl:1 \(0.png\): label 10 is none of"),
    (lambda folder: arrays(folder, label=np.array([0, 3, 255], np.uint8)), "x.npz, row 2: label 255 is none of"),
    (lambda folder: Read((0, 1, 12)), "record 2 of .*: label 12 is none of"),
    (lambda folder: Read((0, -3)), "record 1 of .*: label -3 is none of"),
    (lambda folder: Read((0, 1.0)), "record 1 of .*: label 1.0 is none of"),
    (lambda folder: Read((True, 0)), "record 0 of .*: label True is none of"),
    (lambda folder: Read((0, np.float32("nan"))), "record 1 of .*: label nan is none of"),
    (lambda folder: Read((0, "cat")), "record 1 of .*: label cat is none of"),
    (lambda folder: Read((0, np.array([1]))), r"record 1 of .*: label \[1\] is none of"),
], ids=lambda value: value if isinstance(value, str) else "of")
def test_labels_that_the_model_has_no_class_for(tmp_path, make, says):
    source = make(tmp_path)
    with pytest.raises(ConfigError, match=says) as error:
        survey.check_labels(source, 10)
    assert "\n" not in str(error.value)
    if not isinstance(source, Read):
        survey.check_labels(source, 1001)
        survey.check_labels(source, 0)


@pytest.mark.parametrize("source", [Digits(), Read((0, 9, np.int32(3), np.asarray(4)))], ids=["digits", "read"])
def test_labels_that_fit_are_taken(source):
    survey.check_labels(source, 10)


def test_data_without_labels_or_captions_is_taken():
    survey.check_labels(Read(captions_of=("a",)), 10)
    assert survey.check_captions(Read((1,)), ClipBPE(merges="", context=4)) == ""


LETTERS = ("a", "abc", "abcdefg")                                               # 1, 3 and 7 letters, each a token without merges


@pytest.mark.parametrize(("tokenizer", "extra"), [
    (lambda room, **o: ClipBPE(merges="", context=room, **o), 2),               # start and end
    (lambda room, **o: GlideBPE(merges="", context=room, **o), 0),
    (lambda room, **o: CaptionBPE(room, merges="", **o), 0),
    (lambda room, **o: Bytes(room, **o), 0),
], ids=["clip", "glide", "captions", "bytes"])
def test_captions_that_would_be_cut_are_counted(tmp_path, tokenizer, extra):
    source = listed(tmp_path, text=LETTERS)
    assert [tokenizer(20).count(text) - extra for text in LETTERS] == [1, 3, 7]
    assert survey.check_captions(source, tokenizer(7 + extra)) == ""
    for room, long in ((6, 1), (2, 2)):
        counted = rf"^{long} of 3 captions are longer than the {room + extra} tokens"
        with pytest.raises(ConfigError, match=rf"{counted} .*jsonl:3 \(2.png\), has {7 + extra}: .*truncate=True") as error:
            survey.check_captions(source, tokenizer(room + extra))
        assert "\n" not in str(error.value)
        cut = tokenizer(room + extra, truncate=True)
        assert survey.check_captions(source, cut).endswith("what is beyond is cut")
        assert cut(LETTERS[2]).shape == (room + extra,)                         # as training calls it
        with pytest.raises(ConfigError, match="longer than the context"):
            cut(LETTERS[2], truncate=False)                                     # as prompts are read


def test_words_that_nobody_knows_are_found_before_training(tmp_path):
    source = listed(tmp_path, text=["a cat", "a dgo"])
    with pytest.raises(ConfigError, match=r"metadata.jsonl:2 \(1.png\): unknown word 'dgo': did you mean 'dog'"):
        survey.check_captions(source, Words(("a", "cat", "dog"), 4))
    with pytest.raises(ConfigError, match="1 of 2 captions are longer than the 1 tokens .*, has 2"):
        survey.check_captions(listed(tmp_path, text=["a", "a cat"]), Words(("a", "cat"), 1))


def test_of_many_records_some_are_read_and_it_is_said():
    many = Read(captions_of=("a",) * 5000 + ("abcd",) * 5000)
    many.asked.clear()
    with pytest.raises(ConfigError, match=r"^128 of 256 captions \(looked at, of 10000\) are longer"):
        survey.check_captions(many, Bytes(3))
    assert len(many.asked) == survey.RECORDS + 1
    few = Read(captions_of=("abcd",) * 256)
    with pytest.raises(ConfigError, match="^256 of 256 captions are longer"):
        survey.check_captions(few, Bytes(3))


def test_texts_in_memory_are_counted_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(survey, "TEXTS", 100)
    with pytest.raises(ConfigError, match=r"^100 of 100 captions \(looked at, of 1500\)"):
        survey.check_captions(Digits(), Bytes(3))


def test_a_column_of_the_users_own_is_not_taken_for_ours():
    source = Read((0, 12))
    object.__setattr__(source, "labels", ["cat", "dog", "bee"])
    with pytest.raises(ConfigError, match="record 1 of .*: label 12"):
        survey.check_labels(source, 10)


def test_a_run_that_was_begun_without_truncate_goes_on_with_it(tmp_path):
    """Releases before cut captions without a word; their folders say nothing of it."""
    tokenizer = {"name": "diffusion_jax.data.clip_bpe:ClipBPE", "context": 8}
    before, now = ({"data": {"decode": {"tokenizer": each}}} for each in (tokenizer, {**tokenizer, "truncate": True}))
    check_config(before, now, frozenset(), tmp_path)
    now["data"]["decode"]["tokenizer"]["context"] = 9
    with pytest.raises(ConfigError, match="another config .data.decode.tokenizer.context: 8 in the folder, 9 asked"):
        check_config(before, now, frozenset(), tmp_path)


def test_a_tokenizer_of_the_users_own_is_asked_nothing():
    assert survey.check_captions(Digits(), lambda text: np.zeros(3, np.int32)) == survey.check_captions(Digits(), None) == ""
