"""What the tokenizers share: letters for bytes, merges, and what is no file of them. The published numbers are goldens."""
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data import bpe


def test_every_byte_has_a_letter():
    letters = bpe.letters()
    assert len(set(letters.values())) == 256 and letters[ord("a")] == "a" and letters[ord(" ")] == "Ġ"
    assert bpe.read_back(bpe.spelt("ünï 🌸")) == "ünï 🌸"


def test_pairs_merge_first_things_first():
    ranks = {("a", "b"): 0, ("b", "c"): 1, ("ab", "ab"): 2}
    assert bpe.merge(tuple("abcabab"), ranks) == ("ab", "c", "abab")
    assert bpe.merge(tuple("aab"), {}) == ("a", "a", "b")
    assert bpe.merge((), ranks) == ()


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not read as a file of merges"):
        bpe.read_merges(tmp_path / "none")
    (tmp_path / "merges").write_text("#version\na\n")
    with pytest.raises(ConfigError, match="merges:2 is no pair"):
        bpe.read_merges(tmp_path / "merges")
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        bpe.wanted("no_such_package")
