"""What tells data from others: what is removed, added, renamed or moved about is seen, where they lie is not."""
import dataclasses
import json
import shutil

import numpy as np
import pytest

from diffusion_jax.data.digits import Digits
from diffusion_jax.data.fingerprint import difference, fingerprint
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.pictures import save_png


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog", "emu"):
        for i in range(3):
            save_png(tmp_path / "data" / name / f"{i}.png", np.full((4, 4, 3), 10 * i, np.uint8))
    return tmp_path / "data"


def remove(folder):
    (folder / "dog" / "1.png").unlink()


def rename_class(folder):
    (folder / "cat").rename(folder / "zebra")


def rename_file(folder):
    (folder / "cat" / "1.png").rename(folder / "cat" / "9.png")


def add(folder):
    shutil.copy(folder / "cat" / "1.png", folder / "emu" / "7.png")


def other_class(folder):
    shutil.move(folder / "cat" / "1.png", folder / "emu" / "7.png")


def class_gone(folder):
    shutil.rmtree(folder / "dog")


def new_class(folder):
    shutil.copytree(folder / "dog", folder / "eel")
    shutil.rmtree(folder / "cat")


@pytest.mark.parametrize(("change", "says"), [
    (remove, "9 records then, 8 now"), (add, "9 records then, 10 now"), (class_gone, "9 records then, 6 now"),
    (rename_class, "3 classes then, 3 now; without 'cat'; new: 'zebra'"),
    (new_class, "3 classes then, 3 now; without 'cat'; new: 'eel'"),
    (rename_file, "not the same ones in the same order"), (other_class, "not the same ones in the same order"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_another_folder_is_told_from_it(folder, change, says):
    before = fingerprint(Folder(str(folder)))
    change(folder)
    assert says in difference(before, fingerprint(Folder(str(folder))))


def test_the_same_data_are_the_same_wherever_they_lie(folder, tmp_path, monkeypatch):
    before = fingerprint(Folder(str(folder)))
    assert before == json.loads(json.dumps(before)) and before["records"] == 9 and before["classes"] == ["cat", "dog", "emu"]
    folder.rename(tmp_path / "moved")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "moved", "~/moved"):
        assert difference(before, fingerprint(Folder(str(path)))) is None
    (tmp_path / "moved" / ".DS_Store").touch()
    assert difference(before, fingerprint(Folder(str(tmp_path / "moved")))) is None


@dataclasses.dataclass(frozen=True)
class Bare:
    """A source of a user's own: it lists nothing, and calls other things by the names of lists."""

    size: int = 100
    label: int = 0
    captions: str = "captions.txt"
    labels: int = 3
    channels: int = 1
    names = None

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return {"image": np.zeros((4, 4, self.channels), np.uint8), "label": i + self.label, "caption": f"number {i}"}


@pytest.mark.parametrize(("changed", "differs"), [
    (dict(), False), (dict(size=99), True), (dict(label=1), True), (dict(channels=3), True), (dict(captions="moved.txt"), False),
], ids=str)
def test_a_source_that_lists_nothing_is_looked_at_here_and_there(changed, differs):
    assert (difference(fingerprint(Bare()), fingerprint(Bare(**changed))) is not None) == differs


def test_what_comes_with_the_package_has_one():
    train, test = fingerprint(Digits("train")), fingerprint(Digits("test"))
    assert train["records"] == 1500 and train["classes"] == list("0123456789")
    assert difference(train, test) == "1500 records then, 297 now"


@pytest.mark.parametrize("before", [{}, {"records": 9}, {"records": 9, "classes": None, "list": "?"}, {"records": "9"}])
def test_one_that_is_not_whole_is_another(folder, before):
    assert difference(before, fingerprint(Folder(str(folder))))
