"""What the tokenizers share: letters for bytes, merges, and what is no file of them. The published numbers are goldens."""
import gzip

import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data import bpe
from diffusion_jax.data.caption_bpe import CaptionBPE
from diffusion_jax.data.clip_bpe import ClipBPE
from diffusion_jax.data.glide_bpe import GlideBPE
from diffusion_jax.data.words import Bytes, Words


def test_every_byte_has_a_letter():
    letters = bpe.letters()
    assert len(set(letters.values())) == 256 and letters[ord("a")] == "a" and letters[ord(" ")] == "Ġ"
    assert bpe.read_back(bpe.spelt("ünï 🌸")) == "ünï 🌸"


def test_a_row_is_filled_up_or_cut():
    assert bpe.row([5, 6], 4, 0).tolist() == [5, 6, 0, 0] and bpe.row([5, 6], 2, 0, 9).tolist() == [5, 6]
    assert bpe.row([5, 6, 7], 2, 0).tolist() == [5, 6] and bpe.row([5, 6, 7], 2, 0, 9).tolist() == [5, 9]
    assert bpe.row([], 2, 3).tolist() == [3, 3] and bpe.row([1], 1, 0).dtype == "int32"


def test_pairs_merge_first_things_first():
    ranks = {("a", "b"): 0, ("b", "c"): 1, ("ab", "ab"): 2}
    assert bpe.merge(tuple("abcabab"), ranks) == ("ab", "c", "abab")
    assert bpe.merge(tuple("aab"), {}) == ("a", "a", "b")
    assert bpe.merge((), ranks) == ()


@pytest.mark.parametrize("data", [
    gzip.compress(b"\0" * 1001), b"#\n" + b"a b\n" * 250 + b"a", gzip.compress(b"#version\na b\n")[:-9], b"\x1f\x8bno gzip",
    gzip.compress(b"#version\na b\n")[:12] + b"\xff" * 20, b"#version\n\xff \xff\n",
], ids=["bomb", "large", "cut", "none", "damaged", "latin"])
def test_a_file_of_merges_is_bounded_and_whole(tmp_path, monkeypatch, data):
    monkeypatch.setattr(bpe, "MOST_BYTES", 1000)
    (tmp_path / "merges").write_bytes(data)
    for path in (tmp_path / "merges", tmp_path):
        with pytest.raises(ConfigError, match="does not read as a file of merges") as error:
            bpe.read_merges(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [
    lambda length: ClipBPE(context=length), lambda length: GlideBPE(context=length), CaptionBPE, Bytes,
    lambda length: Words(("a",), length), lambda most: ClipBPE(most=most), lambda most: CaptionBPE(4, most=most),
])
@pytest.mark.parametrize("number", [-1, 2.5, float("nan"), 10**9, True])
def test_lengths_and_merges_are_whole_numbers(make, number):
    with pytest.raises(ConfigError, match="of the tokenizer") as error:
        make(number)
    assert "\n" not in str(error.value)


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not read as a file of merges"):
        bpe.read_merges(tmp_path / "none")
    (tmp_path / "merges").write_text("#version\na\n")
    with pytest.raises(ConfigError, match="merges:2 is no pair"):
        bpe.read_merges(tmp_path / "merges")
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        bpe.wanted("no_such_package")
