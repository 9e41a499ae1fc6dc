"""Byte-pair encoding with dropout: against the package tokenizers, whose own draws cannot be seeded."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.bpe import read_back
from diffusion_jax.data.caption_bpe import CaptionBPE, merge_some
from diffusion_jax.data.clip_bpe import END
from diffusion_jax.data.image import Decode

PAIRS = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>"), ("lo", "w"), ("low", "er</w>"), ("n", "e"), ("ne", "w"), ("new", "er</w>")]
WORDS = ("lower", "newer", "low", "slowlower", "never")


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    path = tmp_path_factory.mktemp("merges") / "merges.txt"
    path.write_text("#version\n" + "\n".join(" ".join(pair) for pair in PAIRS) + "\n")
    return str(path)


def spelling(tokenizer, text, **options):
    symbols = {number: symbol for symbol, number in tokenizer._numbers.items()}
    return [symbols[number] for number in tokenizer(text, **options) if number]


def test_without_dropout_it_is_the_package(merges):
    tokenizers = pytest.importorskip("tokenizers")
    ours = CaptionBPE(length=16, merges=merges)
    letters = sorted({letter for word in WORDS for letter in word})
    vocab = {symbol: i for i, symbol in enumerate([*letters, *(a + END for a in letters), *map("".join, PAIRS)])}
    theirs = tokenizers.models.BPE(vocab, PAIRS, end_of_word_suffix=END)
    for word in WORDS:
        assert spelling(ours, word) == [token.value for token in theirs.tokenize(word)]
    ranks = {pair: i for i, pair in enumerate(PAIRS)}
    dropped = tokenizers.models.BPE(vocab, PAIRS, dropout=0.4, end_of_word_suffix=END)
    assert merge_some(("l", "o", "w", "e", "r</w>"), ranks, 0.0, np.random.default_rng(0)) == ("lower</w>",)
    rng = np.random.default_rng(0)
    for word in WORDS[:2]:
        letters = (*word[:-1], word[-1] + END)
        got = np.mean([len(merge_some(letters, ranks, 0.4, rng)) for _ in range(4000)])
        want = np.mean([len(dropped.tokenize(word)) for _ in range(4000)])
        assert got == pytest.approx(want, abs=0.1)


def test_dropout_is_a_function_of_the_generator_and_spells_the_same_text(merges):
    tokenizer = CaptionBPE(length=16, merges=merges, dropout=0.5)
    drawn = [tokenizer("Lower newer", rng=np.random.default_rng(seed)) for seed in (1, 1, 2, 3)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert any((drawn[0] != other).any() for other in drawn[2:])
    for seed in range(5):
        symbols = spelling(tokenizer, "Lower newer", rng=np.random.default_rng(seed))
        assert read_back("".join(symbols)).replace(END, " ") == "lower newer "
    np.testing.assert_array_equal(tokenizer("lower"), CaptionBPE(length=16, merges=merges)("lower"))


def test_decode_draws_for_training_only(merges):
    decode = Decode(8, tokenizer=CaptionBPE(length=8, merges=merges, dropout=0.9))
    record = {"image": np.zeros((8, 8, 3), np.uint8), "caption": "lower"}
    assert decode.random and (decode(record)["tokens"] > 0).sum() == 1
    assert max((decode(record, np.random.default_rng(seed))["tokens"] > 0).sum() for seed in range(5)) > 1


def test_a_spelling_that_is_drawn_too_long_gives_way_to_the_usual_one(merges):
    tokenizer = CaptionBPE(length=2, merges=merges, dropout=0.9)
    usual = CaptionBPE(length=2, merges=merges)("lower newer")
    for seed in range(5):                                                       # as good as every draw has more than two symbols
        np.testing.assert_array_equal(tokenizer("lower newer", rng=np.random.default_rng(seed)), usual)
    with pytest.raises(ConfigError, match="a text of 3 tokens is longer than the context of 2"):
        tokenizer("lower newer low", rng=np.random.default_rng(0))


def test_what_it_refuses(merges):
    with pytest.raises(ConfigError, match="probability below 1"):
        CaptionBPE(length=4, dropout=1.0)
    with pytest.raises(ConfigError, match="context of 2"):
        CaptionBPE(length=2, merges="")("long")
    assert CaptionBPE(length=2, merges="")("long", truncate=True).tolist() == [76, 79]
    assert CaptionBPE(length=4, merges="").size == 513
