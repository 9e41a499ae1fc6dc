"""All files of a data set, looked at once."""
import json
import os
from dataclasses import dataclass

import numpy as np
import pytest
from data.kinds_of_pictures import BROKEN, SAME, note_decoded, photos, zipped

from diffusion_jax.build import ConfigError
from diffusion_jax.data import damage
from diffusion_jax.data.arrays import Arrays, Tiles
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.pictures import save_png


@pytest.fixture
def folder(tmp_path):
    photos(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch):
    return note_decoded(monkeypatch)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_every_file_is_looked_at_once_and_the_broken_ones_are_named(folder, tmp_path, decoded, kind):
    source = Folder(str(folder)) if kind == "folder" else Arrays(str(zipped(folder)), label="folder")
    looks = damage.look_at(source, tmp_path / "notes.json")
    want = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("[0-9a-z]*.[gjpw]*"))
    assert sorted(looks) == sorted(decoded) == want and len(want) == 12
    assert {name for name, look in looks.items() if look.reason} == set(BROKEN)
    for name, says in BROKEN.items():
        assert looks[name].reason.startswith("cannot read this image (") and looks[name].reason.endswith(")")
        assert says in looks[name].reason
    # What training would say.
    places = [source.place(i) for i in range(len(source))]
    for place in (place for place in places if place.endswith(tuple(BROKEN))):
        with pytest.raises(ConfigError, match="cannot read this image"):
            source[places.index(place)]
    assert damage.same(looks.items()) == (1, SAME)
    decoded.clear()
    assert damage.look_at(source, tmp_path / "notes.json") == looks and not decoded


def test_a_damaged_member_of_an_archive_is_broken(folder, tmp_path):
    path = zipped(folder)
    content = (folder / "rose/0.jpg").read_bytes()
    packed = path.read_bytes()
    at = packed.index(content) + 100
    path.write_bytes(packed[:at] + bytes([packed[at] ^ 255]) + packed[at + 1:])
    for _ in range(2):
        looks = damage.look_at(Arrays(str(path), label="folder"), tmp_path / "notes.json")
        assert looks["rose/0.jpg"].reason == "cannot read it (Bad CRC-32 for file 'rose/0.jpg')"
        assert {name for name, look in looks.items() if look.reason} == {*BROKEN, "rose/0.jpg"}


def test_both_splits_look_at_the_whole_folder_once(folder, tmp_path, decoded):
    looks = [damage.look_at(Folder(str(folder), split, 0.4), tmp_path / "notes.json") for split in ("train", "test")]
    assert looks[0] == looks[1] and len(decoded) == 12


def test_splits_of_an_archive_are_looked_at_once_each(folder, tmp_path, decoded):
    path = zipped(folder)
    members = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("[0-9a-z]*.[gjpw]*"))
    (tmp_path / "split.json").write_text(json.dumps([["train", "test"][i % 3 == 0] for i in range(len(members))]))
    sources = [Arrays(str(path), label="folder", split=split, meta=("split.json",)) for split in ("train", "test")]
    looks = [damage.look_at(source, tmp_path / "notes.json") for source in sources]
    assert sorted(looks[0]) == sorted(set(members) - set(members[::3])) and sorted(looks[1]) == members[::3]
    assert sorted(decoded) == members
    assert [damage.look_at(source, tmp_path / "notes.json") for source in sources] == looks and sorted(decoded) == members


def test_what_changed_is_looked_at_again_and_nothing_else(folder, tmp_path, decoded):
    notes = tmp_path / "notes.json"
    damage.look_at(Folder(str(folder)), notes)
    good = (folder / "rose/0.jpg").read_bytes()
    (folder / "rose/cut.jpg").write_bytes(good)
    save_png(folder / "tulip/9.png", np.zeros((4, 4, 3), np.uint8))
    os.utime(folder / "rose/1.jpg", ns=(1, 1))
    (folder / "tulip/text.jpg").unlink()
    decoded.clear()
    looks = damage.look_at(Folder(str(folder)), notes)
    assert sorted(decoded) == ["rose/1.jpg", "rose/cut.jpg", "tulip/9.png"]
    assert {name for name, look in looks.items() if look.reason} == set(BROKEN) - {"rose/cut.jpg", "tulip/text.jpg"}
    assert looks["rose/cut.jpg"].digest == looks["rose/0.jpg"].digest and "tulip/text.jpg" not in looks
    decoded.clear()
    damage.look_at(Folder(str(folder)), notes)
    assert not decoded


def test_another_decoder_looks_again_at_what_it_may_read(folder, tmp_path, decoded, monkeypatch):
    damage.look_at(Folder(str(folder)), tmp_path / "notes.json")
    decoded.clear()
    monkeypatch.setattr(damage, "READER", "another")
    damage.look_at(Folder(str(folder)), tmp_path / "notes.json")
    assert sorted(decoded) == sorted(BROKEN)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"reader": 1, "folders": {"x": [[]]}}', '{"reader": 1, "folders": [1]}',
                                  '{"reader": 1, "folders": {"x": [["a", 1, 2, "b"]]}}'])
def test_notes_that_do_not_read_are_made_anew(folder, tmp_path, text):
    (tmp_path / "notes.json").write_text(text)
    looks = damage.look_at(Folder(str(folder)), tmp_path / "notes.json")
    assert len(looks) == 12 and len(json.loads((tmp_path / "notes.json").read_text())["folders"][str(folder)]) == 12


def test_an_end_half_way_loses_nothing(folder, tmp_path, decoded, monkeypatch):
    def refuse(name):
        if name == "tulip/2.gif":
            raise OSError(5, "Input/output error")
        return (folder / name).read_bytes()

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(damage, "MOST_THREADS", 1)
        patch.setattr(Folder, "content", lambda self, name: refuse(name))
        damage.look_at(Folder(str(folder)), tmp_path / "notes.json")
    decoded.clear()
    damage.look_at(Folder(str(folder)), tmp_path / "notes.json")
    # The pool hands out eight files at a time, and of the first eight none was refused.
    assert sorted(decoded) == sorted(file.name for file in Folder(str(folder)).files)[8:]


def test_a_file_that_is_closed_is_broken_for_as_long_as_it_is(folder, tmp_path, monkeypatch):
    """By a patch: the tests may be run by root, to whom nothing is closed."""
    def closed(self, name):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "content", closed)
        looks = damage.look_at(Folder(str(folder)), tmp_path / "notes.json")
    assert looks["rose/0.jpg"].reason == "cannot be opened (Permission denied)"
    assert damage.same(looks.items()) == (0, None)
    assert not damage.look_at(Folder(str(folder)), tmp_path / "notes.json")["rose/0.jpg"].reason


@dataclass(frozen=True)
class Own:
    """A source of a user's own that has something else by these names."""

    files: tuple[str, ...] = ("a",)
    content: str = "text"


def test_sources_without_files_are_not_looked_at(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((3, 4, 4, 1), np.uint8))
    save_png(tmp_path / "train_cat.png", np.zeros((8, 8, 1), np.uint8))
    for source in (Digits(), Arrays(str(tmp_path / "x.npz")), Tiles(str(tmp_path), tile=8), Own()):
        assert damage.look_at(source, tmp_path / "notes.json") == {}
    assert not (tmp_path / "notes.json").exists()
