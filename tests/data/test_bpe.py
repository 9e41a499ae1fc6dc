"""The tokenizers without their published merges, and what they refuse. The published numbers are goldens."""
import gzip

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data import bpe
from diffusion_jax.data.clip_bpe import ClipBPE
from diffusion_jax.data.glide_bpe import GlideBPE


def file_of(tmp_path, *lines, compress=False):
    text = "\n".join(["#version", *lines, ""]).encode()
    path = tmp_path / "merges"
    path.write_bytes(gzip.compress(text) if compress else text)
    return str(path)


def test_every_byte_has_a_letter():
    letters = bpe.letters()
    assert len(set(letters.values())) == 256 and letters[ord("a")] == "a" and letters[ord(" ")] == "Ġ"
    assert bpe.read_back(bpe.spelt("ünï 🌸")) == "ünï 🌸"


def test_pairs_merge_first_things_first():
    ranks = {("a", "b"): 0, ("b", "c"): 1, ("ab", "ab"): 2}
    assert bpe.merge(tuple("abcabab"), ranks) == ("ab", "c", "abab")
    assert bpe.merge(tuple("aab"), {}) == ("a", "a", "b")
    assert bpe.merge((), ranks) == ()


@pytest.mark.parametrize("compress", [False, True])
def test_clip_merges_end_of_words(tmp_path, compress):
    tokenizer = ClipBPE(file_of(tmp_path, "c a", "ca t</w>", compress=compress), context=6)
    assert tokenizer.vocab == 512 + 2 + 2
    row = tokenizer("CAT &amp;lt;")
    assert list(row[[0, 1]]) == [514, 513] and row.dtype == np.int32
    assert tokenizer.decode(tokenizer.encode("a cat's")) == "a cat 's "


def test_a_long_text_is_cut_and_keeps_its_end_or_is_refused():
    tokenizer = ClipBPE("", context=4)
    assert list(tokenizer("abcdef")[[0, -1]]) == [512, 513]
    with pytest.raises(ConfigError, match="longer than the context of 4"):
        tokenizer("abcdef", truncate=False)
    assert list(ClipBPE("", context=5, pad_end=True)("")) == [512, 513, 513, 513, 513]


def test_glide_pads_with_its_end(tmp_path):
    tokenizer = GlideBPE(file_of(tmp_path, "Ġ a"), context=5)
    rows = tokenizer.batch(["B a", ""])
    assert tokenizer.vocab == 258 and tokenizer.end == 257
    assert list(rows[0][1:]) == [256, 257, 257, 257]
    np.testing.assert_array_equal(tokenizer.mask(rows), [[1, 1, 0, 0, 0], [0] * 5])
    assert tokenizer.decode(rows[0]) == "b a"


def test_what_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="does not read as a file of merges"):
        ClipBPE(str(tmp_path / "none"))("a")
    with pytest.raises(ConfigError, match="merges:2 is no pair"):
        GlideBPE(file_of(tmp_path, "a"))("a")
    with pytest.raises(ConfigError, match="import again with --official"):
        GlideBPE()("a")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install open_clip_torch"):
        ClipBPE()("a")
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        bpe.wanted("no_such_package")
