"""T5's tokenizer, over a small model of SentencePiece that is trained here."""
import io

import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.sentence_pieces import SentencePieces

spm = pytest.importorskip("sentencepiece")
LINES = ["a photo of a cat", "a photo of a dog", "the cat sat on the mat", "dogs and cats", "a red ball on a blue box"] * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of a model with T5's special tokens."""
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=out, vocab_size=28, model_type="unigram", pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, minloglevel=2,
    )
    file = tmp_path_factory.mktemp("spm") / "spiece.model"
    file.write_bytes(out.getvalue())
    return str(file)


def test_a_text_is_its_pieces_the_end_and_what_fills_up(model):
    tokenizer = build(dict(name="diffusion_jax.data.sentence_pieces:SentencePieces", model=model, context=16))
    direct = spm.SentencePieceProcessor(model_file=model)
    text = "  a  photo of the\tcat"
    numbers = direct.encode("a photo of the cat")
    row = tokenizer(text)
    np.testing.assert_array_equal(row, numbers + [1] + [0] * (15 - len(numbers)))
    assert row.dtype == np.int32 and tokenizer.count(text) == len(numbers) + 1
    assert tokenizer.decode(row) == "a photo of the cat"
    assert (tokenizer.end, tokenizer.fill, tokenizer.vocab) == (1, 0, direct.vocab_size())
    np.testing.assert_array_equal(tokenizer(""), [1] + [0] * 15)
    assert tokenizer.batch(["", "a cat"]).shape == (2, 16)


def test_a_long_text_keeps_its_end_or_is_refused(model):
    tokenizer = SentencePieces(model, context=4)
    row = tokenizer(LINES[2])
    assert row[-1] == 1 and 0 not in row
    np.testing.assert_array_equal(row[:3], tokenizer.encode(LINES[2])[:3])
    with pytest.raises(ConfigError, match="longer than the context of 4"):
        tokenizer(LINES[2], truncate=False)


def test_what_is_no_model_is_refused_in_one_line(tmp_path, model):
    (tmp_path / "x.model").write_bytes(b"no model")
    for path, says in ((tmp_path / "x.model", "give spiece.model"), (tmp_path / "y.model", "give its path as 'model'")):
        with pytest.raises(ConfigError, match=says) as error:
            SentencePieces(str(path))("a")
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="context"):
        SentencePieces(model, context=0)
