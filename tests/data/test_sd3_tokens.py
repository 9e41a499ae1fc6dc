"""The row of tokens of three tokenizers."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.clip_bpe import ClipBPE
from diffusion_jax.data.sd3_tokens import SD3Tokens


class Words:
    """Stands for T5's tokenizer: a number for each word."""

    vocab = 900

    def __call__(self, text):
        numbers = [10 + len(word) for word in text.split()] + [1]
        return np.array((numbers + [0] * 6)[:6], np.int32)

    def count(self, text):
        return len(text.split()) + 1


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setattr(SD3Tokens, "t5", Words())
    return SD3Tokens(length=26, clip=10, pieces="spiece.model", merges="")


def test_a_row_holds_clips_tokens_twice_and_t5s(three):
    row = three("a cat")
    np.testing.assert_array_equal(row[:10], ClipBPE("", 10, pad_end=True)("a cat"))
    np.testing.assert_array_equal(row[10:20], ClipBPE("", 10)("a cat"))
    np.testing.assert_array_equal(row[20:], [11, 13, 1, 0, 0, 0])
    assert row.dtype == np.int32 and three.batch(["a", "b"]).shape == (2, 26)
    assert three.vocab == 900 and three.context == 6


def test_t5_decides_what_is_too_long(three):
    text = "an elephant that walks"                                    # 22 letters for CLIP without merges, 5 tokens for T5
    assert three(text, truncate=False)[9] == 513 and three.count(text) == 5
    with pytest.raises(ConfigError, match="7 tokens is longer than the context of 6"):
        three("one two three four five six", truncate=False)


def test_without_t5_clip_decides():
    bare = SD3Tokens(length=20, clip=10, merges="")
    assert bare("a").shape == (20,) and bare.context == 10 and bare.vocab == 514
    with pytest.raises(ConfigError, match="longer than the context of 10"):
        bare("an elephant that walks", truncate=False)


@pytest.mark.parametrize("options", [
    dict(length=154, pieces="x"), dict(length=200), dict(length=100, pieces="x"), dict(length=0),
])
def test_lengths_that_do_not_go_together_are_refused(options):
    with pytest.raises(ConfigError):
        build(dict(name="diffusion_jax.data.sd3_tokens:SD3Tokens", **options))
