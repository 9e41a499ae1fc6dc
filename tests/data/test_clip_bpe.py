"""CLIP's tokenizer without its published merges. The published numbers are goldens."""
import gzip

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.clip_bpe import ClipBPE, clean


def file_of(tmp_path, *lines, compress=False):
    text = "\n".join(["#version", *lines, ""]).encode()
    path = tmp_path / "merges"
    path.write_bytes(gzip.compress(text) if compress else text)
    return str(path)


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


def test_without_merges_a_sign_is_its_place_among_the_printable_ones():
    """'!' is 0; the end of a word is 256 more."""
    tokenizer = ClipBPE("", context=8)
    assert tokenizer.vocab == 514
    word, sign = (ord(letter) - ord("!") for letter in "h?")
    assert tokenizer("H h?").tolist() == [512, word + 256, word + 256, sign + 256, 513, 0, 0, 0]
    assert tokenizer.batch(["H h?", "h"]).shape == (2, 8)


@pytest.mark.parametrize(("text", "words"), [
    ("a  photo,\nof 42 Cats", "a photo , of 4 2 cats "), ("schön 日本語 🌸", "schön 日本語 🌸 "),
    ("it's we'll", "it 's we 'll "), ("", ""),
])
def test_a_text_comes_back_word_by_word(text, words):
    tokenizer = ClipBPE("")
    assert tokenizer.decode(tokenizer.encode(text)) == words


def test_what_is_cleaned_and_what_stands_for_itself():
    assert clean("  A&amp;amp;B\t \n schÃ¶n ") == "a&b schön"
    assert clean("<b> &amp;amp;") == "<b> &"                                       # which ftfy alone leaves as it is
    tokenizer = ClipBPE("")
    assert tokenizer.encode("<|startoftext|>") == [tokenizer.start] and tokenizer.encode("<|endoftext|>") == [tokenizer.end]


def test_fewer_merges_make_a_smaller_vocabulary(tmp_path):
    path = file_of(tmp_path, "c a", "ca t</w>", "d o")
    assert [ClipBPE(path, most=most).vocab for most in (0, 1, 3)] == [514, 515, 517]
    assert len(ClipBPE(path, most=1).encode("cat")) == 2 and len(ClipBPE(path).encode("cat")) == 1


def test_what_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="does not read as a file of merges"):
        ClipBPE(str(tmp_path / "none"))("a")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install open_clip_torch"):
        ClipBPE()("a")
