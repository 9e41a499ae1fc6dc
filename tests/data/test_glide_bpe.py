"""GLIDE's tokenizer without its published merges. The published numbers are goldens."""
import gzip

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.glide_bpe import GlideBPE


def file_of(tmp_path, *lines, compress=False):
    text = "\n".join(["#version", *lines, ""]).encode()
    path = tmp_path / "merges"
    path.write_bytes(gzip.compress(text) if compress else text)
    return str(path)


def test_glide_pads_with_its_end(tmp_path):
    tokenizer = GlideBPE(file_of(tmp_path, "Ġ a"), context=5)
    rows = tokenizer.batch(["B a", ""])
    assert tokenizer.vocab == 258 and tokenizer.end == 257
    assert list(rows[0][1:]) == [256, 257, 257, 257]
    np.testing.assert_array_equal(tokenizer.mask(rows), [[1, 1, 0, 0, 0], [0] * 5])
    assert tokenizer.decode(rows[0]) == "b a"


def test_without_merges_a_byte_is_its_place_among_the_letters():
    """The printable signs of ASCII from '!' on, then those of Latin-1, then the others, of which a space is the 33rd."""
    tokenizer = GlideBPE("", context=6)
    assert (tokenizer.vocab, tokenizer.end) == (257, 256)
    assert tokenizer("Hi a").tolist() == [ord("h") - 33, ord("i") - 33, 94 + 12 + 82 + 32, ord("a") - 33, 256, 256]


@pytest.mark.parametrize("text", ["a  photo,\n of 42 cats ", "schön 日本語 🌸", " it's we'll\t", ""])
def test_a_text_comes_back_letter_by_letter(text):
    tokenizer = GlideBPE("")
    numbers = tokenizer.encode(text)
    assert tokenizer.decode(numbers) == text and len(numbers) == len(text.encode())
    assert not tokenizer.mask(tokenizer("")).any() and tokenizer.encode(text.upper()) == tokenizer.encode(text.upper().lower())


def test_a_long_text_is_cut_without_an_end_or_refused():
    tokenizer = GlideBPE("", context=3)
    assert tokenizer("abcde").tolist() == tokenizer.encode("abc")
    with pytest.raises(ConfigError, match="longer than the context of 3"):
        tokenizer("abcde", truncate=False)


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="merges:2 is no pair"):
        GlideBPE(file_of(tmp_path, "a"))("a")
    with pytest.raises(ConfigError, match="import again with --official"):
        GlideBPE()("a")
