"""Data sets of latents that are damaged, and captions beside latents."""
import json
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("array_record")
from diffusion_jax.build import ConfigError
from diffusion_jax.data.latents import ABOUT, Draw, Latents, Writer

ABOUT_IT = {"names": None, "mean": [0.0, 1.0], "std": [1.0, 2.0]}


def write(folder, count=4):
    rng = np.random.default_rng(0)
    with Writer(folder, "train") as writer:
        for i in range(count):
            writer.write(rng.random((1, 2, 4, 4, 2)), {"caption": f"number {i}"})
    (folder / ABOUT).write_text(json.dumps(ABOUT_IT))
    return Latents(str(folder))


@pytest.mark.parametrize(("content", "message"), [(json.dumps(ABOUT_IT)[:30], "not JSON"), ("{}", "names, mean and std"),
                                                  ("5", "names, mean and std"), (None, "no such file")])
def test_a_damaged_description_is_said(tmp_path, content, message):
    (tmp_path / ABOUT).write_text(content) if content else None
    with pytest.raises(ConfigError, match=f"latents.json: .*{message}") as error:
        len(Latents(str(tmp_path)).names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_record_is_said(tmp_path, damage):
    write(tmp_path)
    file = tmp_path / "train.array_record"
    data = file.read_bytes()
    at = data.index(b"number 2")
    file.write_bytes({"flipped": data[:at] + bytes([data[at] ^ 255]) + data[at + 1:], "cut": data[:at], "empty": b""}[damage])
    source = Latents(str(tmp_path))
    with pytest.raises(ConfigError, match=r"train.array_record.*cannot read it") as error:
        [source[i] for i in range(4)]
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Spelling:
    """Draws one number for a caption."""

    dropout: float

    def __call__(self, text, rng=None):
        return np.int32([0 if rng is None else rng.integers(1, 10**6)])


def test_a_tokenizer_with_dropout_draws_from_the_generator_of_the_record(tmp_path):
    source = write(tmp_path)
    draw = Draw(str(tmp_path), tokenizer=Spelling(0.1))
    first, again, other = (draw(source[0], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first["tokens"] == again["tokens"] != other["tokens"] and min(first["tokens"], other["tokens"]) > 0
    plain = Draw(str(tmp_path), tokenizer=Spelling(0.0))(source[0], np.random.default_rng(1))
    np.testing.assert_array_equal(plain["image"], first["image"])
    assert plain["tokens"] == 0 == draw(source[0])["tokens"]
