"""Files of pictures against independent readers: Pillow, numpy, json, and one of A1111's form."""

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
from PIL import Image, ImageSequence

from diffusion_jax.build import ConfigError
from diffusion_jax.data import pictures
from diffusion_jax.data.folder import Folder

META = {
    "prompt": "a cat\nin “Zürich” \u2028 猫",
    "seed": 7,
    "recipe": {"steps": 50, "guidance": 3.0},
}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("out", "animated"),
    [
        ("x.png", False),
        ("x.npz", False),
        ("x/", False),
        ("a.b/x.png", False),
        ("x.gif", True),
        ("x.mp4", True),
        ("x/", True),
    ],
)
def test_an_out_says_what_to_write(out, animated):
    assert pictures.checked_out(out, animated) == out


def test_an_out_may_lie_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert (
        pictures.checked_out("~/x.png") == "/home/me/x.png"
        and pictures.checked_out("~/x/") == "/home/me/x/"
    )


@pytest.mark.parametrize(
    ("out", "animated"),
    [("x", False), ("x.jpg", False), ("x.gif", False), ("", False), (".png", True)],
)
def test_other_outs_are_refused(out, animated):
    with pytest.raises(
        ConfigError,
        match=r"in \.png \(a grid\), \.npz \(arr_0, arr_1\)(, .*)? or / \(a folder of PNGs\)",
    ):
        pictures.checked_out(out, animated)


def test_grid_places_row_by_row():
    images = np.stack([np.full((3, 4, 1), 10 * i, np.uint8) for i in range(5)])
    sheet = pictures.grid(images, columns=3, gap=1)
    assert sheet.shape == (2 * 3 + 1, 3 * 4 + 2, 1)
    assert [sheet[0, 0, 0], sheet[0, 5, 0], sheet[2, 13, 0], sheet[4, 0, 0], sheet[6, 8, 0]] == [
        0,
        10,
        20,
        30,
        40,
    ]
    assert (sheet[3] == 255).all() and (sheet[:, 4] == 255).all() and (sheet[4:, 10:] == 255).all()
    assert pictures.grid(noise(9, 8, 8, 3)).shape == (28, 28, 3)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_png_round_trip(tmp_path, shape):
    image = noise(*shape)
    pictures.save_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "new" / "a.png")).reshape(shape), image
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_failed_png_leaves_the_old_one(tmp_path):
    pictures.save_png(tmp_path / "a.png", noise(5, 7, 3))
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises((TypeError, ValueError)):
        pictures.save_png(tmp_path / "a.png", noise(5, 7, 5))
    with pytest.raises(TypeError, match="to_uint8"):
        pictures.save_png(tmp_path / "a.png", np.zeros((5, 7, 3), np.float32))
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_png_has_text_that_pillow_reads(tmp_path):
    image = noise(5, 7, 3)
    text = {
        "parameters": "a cat\nSteps: 5",
        "latin": "Zürich",
        "wide": "猫",
        "broken": "a\udcffb",
        "diffusion_jax": json.dumps(META),
    }
    pictures.save_png(tmp_path / "a.png", image, text)
    with Image.open(tmp_path / "a.png") as picture:
        picture.load()
        np.testing.assert_array_equal(np.asarray(picture), image)
        assert picture.text == text | {"broken": "a\\udcffb"}
    data = (tmp_path / "a.png").read_bytes()
    assert (data.count(b"tEXt"), data.count(b"iTXt")) == (4, 1)  # all but 'wide' are latin-1


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"arr_0"}),
        ({"labels": np.arange(3)}, {"arr_0", "arr_1"}),
        ({"prompts": ["a", "b", "猫"], "meta": META}, {"arr_0", "prompts", "meta"}),
    ],
)
def test_an_npz_is_what_evaluators_read(tmp_path, options, keys):
    images = noise(3, 4, 5, 3)
    pictures.save_npz(tmp_path / "new" / "x.npz", images, **options)
    with np.load(tmp_path / "new" / "x.npz", allow_pickle=False) as saved:
        assert set(saved) == keys
        np.testing.assert_array_equal(saved["arr_0"], images)
        if "arr_1" in keys:
            np.testing.assert_array_equal(saved["arr_1"], np.arange(3))
        if "meta" in keys:
            assert json.loads(str(saved["meta"])) == META and list(saved["prompts"]) == [
                "a",
                "b",
                "猫",
            ]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["x.npz"]
    read, labels = pictures.read_batch(tmp_path / "new" / "x.npz")
    np.testing.assert_array_equal(read, images)
    assert (labels is not None) == ("arr_1" in keys)


def test_a_failed_npz_leaves_the_old_one(tmp_path):
    pictures.save_npz(tmp_path / "x.npz", noise(3, 4, 5, 3))
    before = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(TypeError, match="to_uint8"):
        pictures.save_npz(tmp_path / "x.npz", np.zeros((3, 4, 5, 3)))
    with pytest.raises(TypeError, match="object"):
        pictures.save_npz(tmp_path / "x.npz", noise(3, 4, 5, 3), meta={"what": object()})
    assert (tmp_path / "x.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_written_as_batches_come(tmp_path):
    images = noise(5, 4, 3, 3)

    def batches():
        yield images[:2]
        lines = (tmp_path / "x" / "samples.jsonl").read_text().splitlines()
        assert [json.loads(line)["file_name"] for line in lines] == ["000000_3.png", "000001_1.png"]
        assert all((tmp_path / "x" / json.loads(line)["file_name"]).exists() for line in lines)
        yield images[2:]

    labels = np.array([3, 1, 4, 1, 5], np.int32)
    number = pictures.save_folder(
        tmp_path / "x",
        batches(),
        labels,
        lambda i: META | {"index": i},
        lambda i: {"index": str(i)},
    )
    assert number == 5
    lines = [
        json.loads(line) for line in (tmp_path / "x" / "samples.jsonl").read_text().splitlines()
    ]
    assert [(line["label"], line["index"]) for line in lines] == [
        (3, 0),
        (1, 1),
        (4, 2),
        (1, 3),
        (5, 4),
    ]
    assert all(META.items() <= line.items() for line in lines)
    for i, line in enumerate(lines):
        with Image.open(tmp_path / "x" / line["file_name"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), images[i])
            assert picture.text == {"index": str(i)}
    np.testing.assert_array_equal(pictures.read_batch(tmp_path / "x")[0], images)


def test_a_folder_without_labels_or_meta(tmp_path):
    pictures.save_folder(tmp_path, iter([noise(2, 4, 3, 1)]))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "000000.png",
        "000001.png",
        "samples.jsonl",
    ]
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[1]) == {
        "file_name": "000001.png"
    }


def test_a_folder_is_read_without_what_is_no_image(tmp_path):
    images = noise(2, 4, 3, 3)
    pictures.save_folder(tmp_path, [images])
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "metadata.jsonl",
        "notes.txt",
        "._000000.png",
        ".000000.17.png",
    ):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "deeper.png").mkdir()
    np.testing.assert_array_equal(pictures.read_batch(tmp_path)[0], images)
    (tmp_path / "deeper.png").rmdir()
    (tmp_path / "metadata.jsonl").unlink()
    assert [record["image"].tolist() for record in Folder(str(tmp_path))] == images.tolist()


def test_a_grey_picture_among_coloured_ones(tmp_path):
    pictures.save_png(tmp_path / "0.png", noise(4, 3, 1))
    pictures.save_png(tmp_path / "1.png", noise(4, 3, 3))
    images, labels = pictures.read_batch(tmp_path)
    assert labels is None
    np.testing.assert_array_equal(images, np.stack([noise(4, 3, 1).repeat(3, -1), noise(4, 3, 3)]))


@pytest.mark.parametrize(
    ("shapes", "message"), [([], "no images"), ([(4, 4, 3), (4, 5, 3)], "of one size, it has 2")]
)
def test_folders_that_are_no_batch(tmp_path, shapes, message):
    (tmp_path / "notes.txt").write_text("text")
    for number, shape in enumerate(shapes):
        pictures.save_png(tmp_path / f"{number}.png", noise(*shape))
    with pytest.raises(ConfigError, match=message):
        pictures.read_batch(tmp_path)


@pytest.mark.parametrize(
    "arrays", [{}, {"arr_0": np.zeros((2, 4, 4, 3))}, {"arr_0": np.zeros((4, 4, 3), np.uint8)}]
)
def test_arrays_that_are_no_batch(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", labels=np.arange(2), **arrays)
    with pytest.raises(ConfigError, match="needs an array 'arr_0'"):
        pictures.read_batch(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="there is no"):
        pictures.read_batch(tmp_path / "y.npz")


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 8, 6, 1), (126, 168)), ((3, 201, 150, 3), (150, 202)), ((3, 128, 130, 3), (130, 128))],
)
def test_an_animation_has_every_frame(tmp_path, shape, size, capsys):
    pytest.importorskip("imageio")
    frames = np.broadcast_to(np.array([0, 120, 255], np.uint8).reshape(3, 1, 1, 1), shape)
    folder = tmp_path / "new"
    files = pictures.animated(folder / "x.png", frames, seconds=0.2)
    assert files[0] == folder / "x.gif" and set(files) == set(folder.iterdir())
    assert len(files) == 2 or "pip install imageio-ffmpeg" in capsys.readouterr().out
    with Image.open(files[0]) as gif:
        assert gif.n_frames == 3 and gif.size == size
        assert gif.info["duration"] == 200 and gif.info["loop"] == 0
        grey = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    assert [int(each.min()) for each in grey] == [int(each.max()) for each in grey] == [0, 120, 255]


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
