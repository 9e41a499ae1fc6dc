"""What is kept on disk is found again by the contents of what it came from: whatever changes, and nothing else, is another."""
import json
import os
import shutil

import jax
import numpy as np
import pytest
from pages import page

from diffusion_jax.data.image import read
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import identity
from diffusion_jax.train.state import plain


def picture(value):
    return np.full((8, 8, 1), value, np.uint8)


def replaced(path, content):
    """Another file of the same name, the same size and the same time."""
    before = path.stat()
    assert len(content) == before.st_size
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edited(path, content):
    """The same file, written over in place and at the same time."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("whole", [2**28, 0], ids=["small", "large"])
@pytest.mark.parametrize("change", [replaced, edited])
def test_a_file_of_the_same_size_and_time_is_another(tmp_path, monkeypatch, change, whole):
    """By its content; of files that are too large to read by the times that nobody can set."""
    monkeypatch.setattr(identity, "WHOLE", whole)
    (tmp_path / "x.npz").write_bytes(b"one")
    before = identity.of_files(tmp_path / "x.npz")
    assert identity.of_files(tmp_path / "x.npz") == before
    change(tmp_path / "x.npz", b"two")
    assert identity.of_files(tmp_path / "x.npz") != before


def add(folder):
    save_png(folder / "2.png", picture(2))


def rename(folder):
    (folder / "1.png").rename(folder / "3.png")


def exchange(folder):
    one, two = (folder / "0.png").read_bytes(), (folder / "1.png").read_bytes()
    (folder / "0.png").write_bytes(two)
    (folder / "1.png").write_bytes(one)


def classes(folder):
    save_png(folder / "cat" / "0.png", picture(2))


def listing(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "label": 1}\n')


def csv(folder):
    (folder / "metadata.csv").write_text("file_name,label\n0.png,1\n")


def caption(folder):
    (folder / "0.txt").write_text("a cat")


@pytest.mark.parametrize("change", [add, rename, exchange, classes, listing, csv, caption])
def test_a_folder_whose_pictures_changed_is_another(tmp_path, change):
    for i in (0, 1):
        save_png(tmp_path / f"{i}.png", picture(i))
    before = identity.of_files(tmp_path)
    change(tmp_path)
    assert identity.of_files(tmp_path) != before


def test_what_is_not_read_of_a_folder_does_not_count(tmp_path):
    save_png(tmp_path / "0.png", picture(0))
    before = identity.of_files(tmp_path)
    for name in ("notes.txt", ".DS_Store", "Thumbs.db", "evaluate/x/00000000.npz", ".cache/x.png", "__MACOSX/._x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / "0.png", ns=(1, 1))
    assert identity.of_files(tmp_path) == before


# Data -----------------------------------------------------------------------------------------------------------------------


def folder_source(root):
    for i in range(3):
        save_png(root / "train" / str(i % 2) / f"{i}.png", picture(i))
    spec = dict(name="diffusion_jax.data.folder:Folder", path=str(root / "train"))
    return spec, lambda: save_png(root / "train" / "1" / "1.png", picture(9))


def npz_source(root):
    np.savez(root / "x.npz", arr_0=np.zeros((100, 8, 8, 1), np.uint8))
    other = np.zeros((100, 8, 8, 1), np.uint8)
    other[37] = 1                                                        # one that is not among those looked at
    return dict(name="diffusion_jax.data.arrays:Arrays", path=str(root / "x.npz")), lambda: np.savez(root / "x.npz", arr_0=other)


def meta_source(root):
    np.savez(root / "x.npz", arr_0=np.zeros((100, 8, 8, 1), np.uint8))
    labels = [0] * 100
    (root / "labels.json").write_text(json.dumps({"label": labels}))
    spec = dict(name="diffusion_jax.data.arrays:Arrays", path=str(root / "x.npz"), meta=["labels.json"])
    return spec, lambda: (root / "labels.json").write_text(json.dumps({"label": [*labels[:36], 1, *labels[37:]]}))


def tiles_source(root):
    save_png(root / "train_cat.png", np.zeros((8, 16, 1), np.uint8))
    spec = dict(name="diffusion_jax.data.arrays:Tiles", path=str(root), tile=8)
    return spec, lambda: save_png(root / "train_cat.png", np.ones((8, 16, 1), np.uint8))


@pytest.mark.parametrize("source", [folder_source, npz_source, meta_source, tiles_source])
def test_data_whose_files_changed_are_others(tmp_path, source):
    spec, change = source(tmp_path)
    data = {"train": spec, "decode": {"name": "diffusion_jax.data.image:Decode", "size": 8}}
    before = identity.of_data(data, "train")
    assert identity.of_data(data, "train") == before
    change()
    after = identity.of_data(data, "train")
    assert json.dumps(after, default=str) != json.dumps(before, default=str)


def test_data_that_are_in_no_file_are_told_by_their_records(monkeypatch):
    data = plain(page("digits"))["data"]
    before = identity.of_data(data, "train")
    assert identity.of_data(data, "train") == before and identity.of_data(data, "test") != before
    digits = type(identity.build(data["train"]))
    get = digits.__getitem__
    monkeypatch.setattr(digits, "__getitem__", lambda self, i: get(self, i) | {"image": 255 - get(self, i)["image"]})
    assert identity.of_data(data, "train") != before


def test_the_root_of_all_files_is_no_data_set():
    assert list(identity._places({"name": "x:Y", "separator": "/", "path": "/nowhere"})) == []


# Runs -----------------------------------------------------------------------------------------------------------------------


def test_weights_first_stages_and_pages_tell_runs_apart(fresh):
    run = fresh("digits")
    zeros = jax.tree.map(np.zeros_like, run.model.params)
    page_of = {**run.config, "task": {**run.config["task"], "process": {"name": "diffusion_jax.diffusion.process:Flow"}}}
    others = [
        run._replace(digest=run.digest + 1), run._replace(digest=0, model=run.model.replace(params=zeros)),
        *(run._replace(model=run.model.replace(first={"w": np.full(3, value)})) for value in (0.0, 1.0)),
        run._replace(config=page_of), run._replace(which="other"), run._replace(step=run.step + 1),
        *(run._replace(loras=({"file": "x", "strength": value, "content": "5f"},)) for value in (0.5, 1.0)),
    ]
    known = [json.dumps(identity.of_run(each), sort_keys=True) for each in (run, *others)]
    assert len(set(known)) == len(known)
    assert identity.of_run(run._replace(digest=0)) == identity.of_run(run)             # weights in memory


def test_conditions_are_told_apart():
    x = np.zeros((2, 3), np.float32)
    others = [{"a": x}, {"b": x}, {"a": x + 1}, {"a": x.astype(np.float64)}, {"a": x.T}, {"a": x, "b": x}, {"a": "text"},
              {"a": 3}, {}]
    assert len({identity.of_arrays(each) for each in others}) == len(others)


def test_digits_are_read_again(digits, tmp_path):
    """A copy elsewhere is another place, and the same pictures."""
    copy = shutil.copytree(digits / "folder", tmp_path / "folder")
    name = sorted(path.relative_to(copy) for path in copy.rglob("*.png"))[0]
    np.testing.assert_array_equal(read(copy / name), read(digits / "folder" / name))
    assert identity.of_files(copy) != identity.of_files(digits / "folder")
