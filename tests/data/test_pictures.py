"""Files of pictures against independent readers: Pillow, numpy, json, and one of A1111's form."""

import json

import numpy as np
import pytest
from PIL import Image
from saved_pictures import META, noise

from diffusion_jax.build import ConfigError
from diffusion_jax.data import pictures
from diffusion_jax.data.folder import Folder


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
    ("shapes", "message"),
    [([], "no images"), ([(4, 4, 3), (4, 5, 3)], "of one size, it has 2: 0.png and 1.png differ")],
)
def test_folders_that_are_no_batch(tmp_path, shapes, message):
    (tmp_path / "notes.txt").write_text("text")
    for number, shape in enumerate(shapes):
        pictures.save_png(tmp_path / f"{number}.png", noise(*shape))
    with pytest.raises(ConfigError, match=message):
        pictures.read_batch(tmp_path)


IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        *(
            (arrays, "needs an array 'arr_0'")
            for arrays in (
                {},
                {"arr_0": np.zeros((2, 4, 4, 3))},
                {"arr_0": IMAGES[0]},
                {"arr_0": IMAGES[:0]},
                {"arr_0": np.zeros((2, 4, 4, 5), np.uint8)},
                {"arr_0": np.zeros((2, 0, 4, 3), np.uint8)},
            )
        ),
        *(
            ({"arr_0": IMAGES, "arr_1": labels}, "has 2 images and labels 'arr_1'")
            for labels in (
                np.arange(3),
                np.arange(1),
                np.int64(1),
                np.eye(2),
                np.array([0.0, 1.0]),
                np.array([np.nan, 1]),
                np.array([True, False]),
                np.array(["cat", "dog"]),
            )
        ),
        ({"arr_0": IMAGES, "arr_1": np.array([0, -3])}, "arr_1: value 1: label -3 is not within 0"),
        ({"arr_0": IMAGES, "arr_1": np.array([2**40, 0])}, "value 0: label 1099511627776 is not"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_arrays_that_are_no_batch(tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", labels=np.arange(2), **arrays)
    with pytest.raises(ConfigError, match=says) as error:
        pictures.read_batch(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


def test_a_batch_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="there is no"):
        pictures.read_batch(tmp_path / "y.npz")


@pytest.mark.parametrize(("channels", "opaque"), [(2, 1), (4, 3)])
def test_arrays_with_alpha_go_onto_white(tmp_path, channels, opaque):
    images = np.zeros((2, 4, 4, channels), np.uint8)
    images[1, ..., -1] = 255
    np.savez(tmp_path / "x.npz", arr_0=images)
    read, _ = pictures.read_batch(tmp_path / "x.npz")
    assert read.shape == (2, 4, 4, opaque) and (read[0] == 255).all() and not read[1].any()


def test_one_unreadable_picture_of_many_is_named(tmp_path):
    for number in range(3):
        pictures.save_png(tmp_path / f"{number}.png", IMAGES[0])
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:45])
    with pytest.raises(ConfigError, match=r"1\.png: cannot read this image"):
        pictures.read_batch(tmp_path)
