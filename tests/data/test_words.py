"""Tokenizers without files, and captions that become tokens on their way to a batch."""
import unicodedata

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import WORDS as NAMES
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import Decode
from diffusion_jax.data.loader import Batches
from diffusion_jax.data.words import Bytes, Words, vocabulary

WORDS = Words(("a", "handwritten", "three"), 4)


def test_words_and_bytes_are_numbers():
    assert WORDS("A handwritten THREE").tolist() == [1, 2, 3, 0] and WORDS("").tolist() == [0] * 4 and WORDS.size == 4
    assert Bytes(4)("é1").tolist() == [0xC3 + 1, 0xA9 + 1, ord("1") + 1, 0]
    with pytest.raises(ConfigError, match="did you mean 'three'"):
        WORDS("a handwritten thre")
    with pytest.raises(ConfigError, match="the last 1 dropped with --truncate"):
        Bytes(2)("abc")
    assert Bytes(2)("abc", truncate=True).tolist() == [98, 99]


def test_letters_and_accents_are_one_word_whoever_wrote_them():
    apart = unicodedata.normalize("NFD", "une rosé")
    assert vocabulary([apart, "une rosé"]) == ("rosé", "une")
    assert Words(("rosé", "une"), 2)(apart).tolist() == [2, 1]


def test_digits_are_captioned_and_a_batch_holds_their_tokens():
    record = Digits()[0]
    assert record["caption"] == f"a handwritten {NAMES[record['label']]}"
    batch = Batches(Digits(), Decode(8, channels=1, tokenizer=Bytes(20)), 4, 0)[3]
    assert batch["tokens"].shape == (4, 20) and batch["tokens"].dtype == np.int32
    assert bytes(int(b) - 1 for b in batch["tokens"][1] if b).decode() == batch["caption"][1]


def test_a_vocabulary_has_every_word_once():
    texts = ("A red rose.", "a ROSE, und ein Röschen")
    words = vocabulary(texts)
    assert words == ("a", "ein", "red", "rose", "röschen", "und")
    assert all(Words(words, 8)(text).any() for text in texts)
