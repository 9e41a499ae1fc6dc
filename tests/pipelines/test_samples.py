"""Pictures and all that they were made from in their files, read by Pillow, NumPy and json."""
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import diffusion_jax as dj
from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import samples
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.samples import LONGEST, columns_of


def chunks_of(path):
    with Image.open(path) as picture:
        return picture.text


def as_asked(meta):
    """What every file must say, in one dict."""
    return (meta["request"], meta["seed"], meta["num"], meta["batch"], meta["recipe"]["guidance"], meta["recipe"]["sampler"])


WANT = ({"prompt": ["a three", "a one"], "negative": "eight"}, 11, 2, 3, 2.5, "ddim,eta=0.5")


# In files -------------------------------------------------------------------------------------------------------------------


def test_a_png_says_it_twice(texts, folders, tmp_path):
    where = texts.save(tmp_path / "x.png")
    with Image.open(where) as picture:
        grid = np.asarray(picture)
    np.testing.assert_array_equal(grid[:8, :8], texts.images[0, ..., 0])
    np.testing.assert_array_equal(grid[10:, 10:], texts.images[3, ..., 0])          # a row for each prompt
    chunks = chunks_of(where)
    meta = json.loads(chunks["diffusion_jax"])
    assert as_asked(meta) == WANT
    assert meta["run"] == {"run": str(folders.text), "which": "params", "step": 0, "digest": meta["run"]["digest"]}
    assert set(meta["versions"]) == {"diffusion_jax", "jax", "flax"} and meta["recipe"]["phi"] == 0.3
    lines = chunks["parameters"].split("\n")
    assert lines[:3] == ["a three", "a one", "Negative prompt: eight"]
    settings = dict(pair.split(": ", 1) for pair in lines[3].replace('"ddim,eta=0.5"', "ddim;eta=0.5").split(", "))
    assert settings["Steps"] == "4" and settings["CFG scale"] == "2.5" and settings["Seed"] == "11"
    assert settings["Sampler"] == "ddim;eta=0.5" and settings["Model"] == "text"
    assert settings["Model hash"] == f"{meta['run']['digest']:08x}"


def test_an_npz_says_it_as_json(texts, zeros, tmp_path):
    with np.load(texts.save(tmp_path / "x.npz")) as archive:
        assert as_asked(json.loads(str(archive["meta"]))) == WANT
        np.testing.assert_array_equal(archive["arr_0"], texts.images)
        assert archive["prompts"].tolist() == list(texts.prompts) and "arr_1" not in archive
    with np.load(zeros.save(tmp_path / "y.npz")) as archive:
        assert archive["arr_1"].tolist() == [0, 0] and json.loads(str(archive["meta"]))["request"] == {"label": 0}


def test_a_folder_says_it_of_every_picture(texts, tmp_path):
    folder = tmp_path / "x"
    assert texts.save(f"{folder}/") == f"{folder}/"
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"{i:06d}.png" for i in range(4)]
    assert [line["prompt"] for line in lines] == list(texts.prompts) and [line["index"] for line in lines] == [0, 1, 2, 3]
    for line, image in zip(lines, texts.images, strict=True):
        assert as_asked(line) == WANT
        with Image.open(folder / line["file_name"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), image[..., 0])
        chunks = chunks_of(folder / line["file_name"])
        assert chunks["parameters"].split("\n")[0] == line["prompt"] and f"Index: {line['index']}" in chunks["parameters"]
        assert json.loads(chunks["diffusion_jax"])["index"] == line["index"]


def test_labels_stand_in_the_names_and_the_lines(folders, tmp_path):
    pipeline(folders.label)([0, 7], num=1).save(f"{tmp_path}/x/")
    lines = [json.loads(line) for line in (tmp_path / "x" / "samples.jsonl").read_text().splitlines()]
    assert [(line["file_name"], line["label"]) for line in lines] == [("000000_0.png", 0), ("000001_7.png", 7)]
    assert "Label: 0" in chunks_of(tmp_path / "x" / "000000_0.png")["parameters"]


def test_names_of_classes_stand_beside_their_numbers(folders, tmp_path):
    pipe = pipeline(folders.label)
    pipe = replace(pipe, run=pipe.run._replace(classes=("rose", "hard-leaved pocket orchid", "a/b_c: \N{SNOWMAN}", "süß")))
    made = pipe(Request(label=[0, "hard-leaved pocket orchid", 2, 3, 7]), num=1)
    made.save(f"{tmp_path}/x/")
    lines = [json.loads(line) for line in (tmp_path / "x" / "samples.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [
        "000000_rose.png", "000001_hard-leaved-pocket-orchid.png", "000002_a-b-c.png", "000003_süß.png", "000004_7.png"]
    assert [line["class"] for line in lines] == [*pipe.run.classes, "7"] and [line["label"] for line in lines] == [0, 1, 2, 3, 7]
    chunks = chunks_of(tmp_path / "x" / "000001_hard-leaved-pocket-orchid.png")
    assert "Label: 1, Index: 1, Class: hard-leaved pocket orchid" in chunks["parameters"]
    assert json.loads(chunks["diffusion_jax"])["class"] == "hard-leaved pocket orchid"
    named = {"0": "rose", "1": "hard-leaved pocket orchid", "2": "a/b_c: \N{SNOWMAN}", "3": "süß", "7": "7"}
    with np.load(made.save(tmp_path / "x.npz")) as archive:
        assert json.loads(str(archive["meta"]))["classes"] == named
    chunks = chunks_of(pipe("rose", num=2).save(tmp_path / "x.png"))
    assert "Label: rose, Class: rose" in chunks["parameters"]
    assert json.loads(chunks["diffusion_jax"])["classes"] == {"0": "rose"}


def test_a_long_name_leaves_room_in_that_of_its_file(zeros):
    wide = "\N{CJK UNIFIED IDEOGRAPH-20000}"                                   # four bytes
    origin = zeros.origin._replace(classes=("\N{CAT FACE}" * 300, wide * 300, "/"))
    assert [origin.file_part(label) for label in range(3)] == ["0", wide * LONGEST, "2"]
    assert len(f".000000_{origin.file_part(1)}.4194304.png".encode()) < 255     # as `files.whole` writes it


def test_a_gif_has_a_frame_for_each(texts, tmp_path):
    with Image.open(texts.save(tmp_path / "x.gif")) as picture:
        assert picture.format == "GIF" and picture.n_frames == 4


def test_another_suffix_is_refused(zeros, tmp_path):
    for name in ("x.jpg", "x", "x.npy"):
        with pytest.raises(ConfigError, match="end it in .png .a grid., .npz"):
            zeros.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


# Where they go ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["000000.png", "5_3.PNG", "samples.jsonl", "cat/0.jpg"])
def test_a_folder_with_other_pictures_is_refused(zeros, tmp_path, name):
    other = tmp_path / "x" / name
    other.parent.mkdir(parents=True)
    other.write_bytes(b"an earlier run's")
    with pytest.raises(ConfigError, match=f"holds 1 files of other pictures, {name} for example: choose another folder"):
        zeros.save(f"{tmp_path}/x/")
    assert [path.read_bytes() for path in tmp_path.rglob("*.*")] == [b"an earlier run's"]


def test_a_folder_without_pictures_is_written_to_and_a_file_is_written_over(zeros, texts, tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("notes.txt", ".DS_Store"):
        (tmp_path / "x" / name).touch()
    zeros.save(f"{tmp_path}/x/")
    assert len(list((tmp_path / "x").glob("*.png"))) == len(zeros.images)
    with pytest.raises(ConfigError, match="3 files of other pictures"):
        texts.save(f"{tmp_path}/x/")
    for made in (zeros, texts):
        assert dj.read_request(made.save(tmp_path / "x.png")).seed == made.seed


@pytest.mark.parametrize("out", ["folder.png", "folder.npz", "folder.gif", "file/x.png", "file/", "file/x/", "x" * 300 + ".png"])
def test_a_place_that_cannot_be_written_is_said(zeros, tmp_path, out):
    (tmp_path / "file").touch()
    if out.startswith("folder"):
        (tmp_path / out).mkdir()
    with pytest.raises(ConfigError, match="choose another"):
        samples.check_out(f"{tmp_path}/{out}")
    with pytest.raises(ConfigError, match="choose another"):
        zeros.save(f"{tmp_path}/{out}")


def test_bytes_that_were_rounded_down_say_so(folders, tmp_path):
    job = pipeline(folders.label).start([3], num=2, seed=5)
    down = job.rounded("down").samples()
    nearest = pipeline(folders.label)([3], num=2, seed=5)
    assert set(np.unique(nearest.images.astype(int) - down.images)) <= {0, 1} and (nearest.images != down.images).any()
    replay = dj.read_request(down.save(tmp_path / "x.png"))
    assert replay.origin.rounding == "down"
    np.testing.assert_array_equal(replay.make().images, down.images)
    assert "rounding" not in json.loads(chunks_of(nearest.save(tmp_path / "y.png"))["diffusion_jax"])


def test_home_is_expanded(zeros, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert zeros.save("~/a/x.png") == str(tmp_path / "a" / "x.png") and (tmp_path / "a" / "x.png").is_file()
    assert dj.read_request("~/a/x.png").seed == 3


def test_grids_have_a_row_for_each_thing_of_several(texts, zeros):
    assert columns_of(texts.origin) == 2 and columns_of(zeros.origin) is None
    assert columns_of(zeros.origin._replace(request=Request(label=[1, 2, 3]), num=1)) is None
    assert texts.grid().shape == (18, 18, 1) and zeros.grid().shape == (8, 18, 1)
