"""What files of pictures say of themselves: written, read back, and whatever else may stand there."""

import ast
import io
import json
import re
import struct
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from saved_pictures import META, noise

from diffusion_jax.build import ConfigError
from diffusion_jax.data import pictures


def test_what_was_saved_with_pictures_is_read_back(tmp_path):
    image = noise(4, 3, 3)
    pictures.save_png(tmp_path / "x.png", image, {"diffusion_jax": pictures.meta_json(META)})
    pictures.save_npz(tmp_path / "x.npz", image[None], meta=META)
    pictures.save_folder(tmp_path / "x", [image[None]], meta=lambda i: META)
    assert pictures.read_meta(tmp_path / "x.png") == META
    assert pictures.read_meta(str(tmp_path / "x.npz")) == META
    assert pictures.read_meta(tmp_path / "x") == {"file_name": "000000.png"} | META


def test_meta_may_hold_arrays():
    meta = {"label": np.int32(3), "scale": jnp.float32(1.5), "times": np.arange(3)}
    text = pictures.meta_json(meta)
    assert json.loads(text) == {"label": 3, "scale": 1.5, "times": [0, 1, 2]}
    assert text.isascii() and "\n" not in text
    with pytest.raises(ConfigError, match="shorten"):
        pictures.meta_json({"prompt": "a" * pictures.META_LIMIT})


def png(path, *chunks):
    """A 1 x 1 PNG with chunks before its pixel."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixel = chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    between = b"".join(chunk(*each) for each in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + between + pixel)
    return path


def npz(path, member):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.npy", member)
    return path


def npy(header, body=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + body


def array(value):
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def bomb(size):
    return b"diffusion_jax\0\0" + zlib.compress(b" " * size)


def listing(path, text):
    path.mkdir()
    (path / "samples.jsonl").write_bytes(text)
    return path


WRITERS = {
    "png without": lambda path: png(path / "x.png"),
    "png of another": lambda path: png(path / "x.png", (b"tEXt", b"parameters\0a cat")),
    "png list": lambda path: png(path / "x.png", (b"tEXt", b"diffusion_jax\0[1, 2]")),
    "png text": lambda path: png(path / "x.png", (b"tEXt", b"diffusion_jax\0a cat")),
    "png deep": lambda path: png(path / "x.png", (b"tEXt", b"diffusion_jax\0" + b'{"a":' * 100000)),
    "png long number": lambda path: png(
        path / "x.png", (b"tEXt", b'diffusion_jax\0{"a": ' + b"9" * 5000 + b"}")
    ),
    "png long": lambda path: png(
        path / "x.png", (b"tEXt", b"diffusion_jax\0" + b" " * (pictures.META_LIMIT + 1) + b"{}")
    ),
    "png bomb": lambda path: png(path / "x.png", (b"zTXt", bomb(10**8))),
    "no png": lambda path: (path / "x.png").write_bytes(b"a cat") and path / "x.png",
    "eps": lambda path: (
        (path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
        and path / "x.png"
    ),
    "npz without": lambda path: (
        pictures.save_npz(path / "x.npz", noise(1, 2, 2, 3)) or path / "x.npz"
    ),
    "npz of objects": lambda path: npz(path / "x.npz", array(np.array({"a": 1}, object))),
    "npz of numbers": lambda path: npz(path / "x.npz", array(np.arange(3))),
    "npz of many": lambda path: npz(path / "x.npz", array(np.array(["{}", "{}"]))),
    "npz promise": lambda path: npz(
        path / "x.npz", npy({"descr": "<U9999999", "fortran_order": False, "shape": ()}, b"{}")
    ),
    "npz large shape": lambda path: npz(
        path / "x.npz", npy({"descr": "<U1", "fortran_order": False, "shape": (10**15,)})
    ),
    "npz empty": lambda path: npz(
        path / "x.npz", npy({"descr": "<U0", "fortran_order": False, "shape": ()})
    ),
    "npz bomb": lambda path: npz(path / "x.npz", array(np.array(" " * 5 * pictures.META_LIMIT))),
    "no npz": lambda path: (path / "x.npz").write_bytes(b"a cat") and path / "x.npz",
    "folder without": lambda path: path,
    "folder empty": lambda path: listing(path / "x", b""),
    "folder text": lambda path: listing(path / "x", b"a cat\n"),
    "folder bytes": lambda path: listing(path / "x", b"\xff\xfe\n"),
    "folder long": lambda path: listing(
        path / "x", b'{"a": "' + b"a" * 3 * pictures.META_LIMIT + b'"}\n'
    ),
    "nothing": lambda path: path / "x.png",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_that_say_nothing_of_the_kind_are_refused_in_a_line(tmp_path, kind):
    path = WRITERS[kind](tmp_path)
    with pytest.raises(ConfigError, match=re.escape(str(path))) as error:
        pictures.read_meta(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def read_parameters(text):
    """A1111's form taken apart: the settings are its last line, a negative prompt begins one."""
    *lines, last = text.split("\n")
    settings = {}
    for name, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last):
        settings[name] = ast.literal_eval(value) if value.startswith('"') else value
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    return prompt.strip(), negative.strip(), settings


def test_parameters_are_those_of_the_other_programs():
    settings = {
        "seed": 7,
        "eta": 0.0,
        "size": "64x64",
        "sampler": "ddim",
        "steps": 50,
        "guidance": 3.0,
        "phi": None,
    }
    text = pictures.parameters_text("a cat,\nsitting", "blurry: yes", settings)
    assert text == (
        "a cat,\nsitting\nNegative prompt: blurry: yes\n"
        "Steps: 50, Sampler: ddim, CFG scale: 3.0, Seed: 7, Size: 64x64, Eta: 0.0"
    )
    assert read_parameters(text) == (
        "a cat,\nsitting",
        "blurry: yes",
        {
            "Steps": "50",
            "Sampler": "ddim",
            "CFG scale": "3.0",
            "Seed": "7",
            "Size": "64x64",
            "Eta": "0.0",
        },
    )


def test_parameters_quote_what_would_end_them():
    settings = {"steps": 5, "sampler": 'churn,s_min=1: "x"', "Model": "a\nb", "clip_skip": 2}
    prompt, negative, read = read_parameters(pictures.parameters_text("a cat", None, settings))
    assert (prompt, negative) == ("a cat", "")
    assert read == {
        "Steps": "5",
        "Sampler": 'churn,s_min=1: "x"',
        "Model": "a\nb",
        "Clip skip": "2",
    }


def test_parameters_without_a_prompt():
    assert pictures.parameters_text(None, "", {"steps": 5, "label": 3}) == "Steps: 5, Label: 3"
