"""The tokenizer that fits captions."""
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import tokenizers
from diffusion_jax.data.tokenizers import length_of, spelling, vocab_of
from diffusion_jax.data.words import Bytes, Words

CAPTIONS = ["A red rose", "two tulips, one of them white, in a green vase on a table"]


@pytest.fixture(autouse=True)
def none_installed(monkeypatch):
    def find_merges():
        raise ConfigError("not installed")

    monkeypatch.setattr(tokenizers, "find_merges", find_merges)


def checked(captions, **options):
    """A spelling whose numbers are those of its tokenizer, and that tokenizer."""
    chosen = spelling(captions, **options)
    tokenizer = build(chosen.spec)
    assert (chosen.vocab, chosen.length) == (vocab_of(tokenizer), length_of(tokenizer))
    tokens = [int(token) for token in tokenizer("")]
    *first, fill = chosen.empty
    assert tokens == [*first, *[fill] * (chosen.length - len(first))]
    assert all(len(tokenizer(caption)) == chosen.length for caption in captions)
    return chosen, tokenizer


def test_few_words_are_a_vocabulary():
    chosen, tokenizer = checked(CAPTIONS)
    assert isinstance(tokenizer, Words) and chosen.length == 16 and chosen.vocab == 15
    assert tokenizer("red tulips").tolist()[2:] == [0] * 14


def test_many_words_are_bytes(monkeypatch):
    monkeypatch.setattr(tokenizers, "WORDS", 10)
    chosen, tokenizer = checked(CAPTIONS)
    assert isinstance(tokenizer, Bytes) and (chosen.length, chosen.vocab) == (64, 257)


def test_merges_come_first(tmp_path):
    merges = tmp_path / "merges.txt"
    merges.write_text("#version\nr e\nre d</w>\no n\n")
    chosen, tokenizer = checked(CAPTIONS, merges=str(merges))
    assert chosen.vocab == 517 and tokenizer.count("red") == 3
    chosen, tokenizer = checked(CAPTIONS, merges=str(merges), most=1)
    assert chosen.vocab == 515 and tokenizer.count("red") == 4
    with pytest.raises(ConfigError, match="missing"):
        spelling(CAPTIONS, merges="missing.txt")


def test_captions_without_a_word_and_such_that_are_too_long():
    chosen, _ = checked(["", ""])
    assert chosen.length == 8
    chosen, tokenizer = checked([" ".join(["word"] * 100)])
    assert chosen.length == 77 and tokenizer.truncate
