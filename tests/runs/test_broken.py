"""Pictures that do not read: all are named before a run starts, or left out of it and of all that measures it."""
import json
from dataclasses import dataclass

import numpy as np
import pytest
from data.kinds_of_pictures import BROKEN, SAME, note_decoded, photos, zipped

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.fingerprint import difference, fingerprint
from diffusion_jax.data.folder import Folder
from diffusion_jax.runs import broken, held_out
from diffusion_jax.train import resume

FOLDER = "diffusion_jax.data.folder:Folder"
DIGITS = "diffusion_jax.data.digits:Digits"


def page_of(root, **test):
    decode = {"name": "diffusion_jax.data.image:Decode", "size": 8}
    train = {"name": FOLDER, "path": str(root), "split": "train", "holdout": 0.4}
    return {"steps": 2, "data": {"train": train, "test": train | {"split": "test"} | test, "decode": decode}}


@pytest.fixture
def folder(tmp_path):
    photos(tmp_path / "photos")
    return tmp_path / "photos"


def test_all_broken_files_are_named_at_once(folder, tmp_path):
    with pytest.raises(ConfigError) as error:
        broken.settled(page_of(folder), "stop", str(tmp_path / "run"))
    says = str(error.value)
    assert says.startswith("4 of 12 pictures cannot be read: ") and "\n" not in says
    assert all(f"{folder}/{name}: cannot read this image (" in says for name in BROKEN)
    assert says.endswith("): mend or remove them, or leave them out by --config.data.broken=skip")


def test_of_many_the_first_ten_are_named(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(30):
        (tmp_path / "photos" / f"{i:02}.jpg").write_bytes(b"text")
    with pytest.raises(ConfigError, match="30 of 30 pictures cannot be read: .*and 20 more: mend") as error:
        broken.settled(page_of(tmp_path / "photos"), "stop", str(tmp_path / "run"))
    assert str(error.value).count(".jpg") == 10


def test_they_are_left_out_of_both_splits_and_of_what_is_held_out(folder, tmp_path, capsys, monkeypatch):
    config = broken.settled(page_of(folder), "skip", str(tmp_path / "run"))
    says = capsys.readouterr().out
    assert says.startswith("4 of 12 pictures cannot be read: ") and f"{folder}/rose/cut.jpg" in says and ": left out\n" in says
    assert says.splitlines()[1] == f"copies, byte for byte: 1 of 12 pictures, {folder}/{SAME[1]} of {folder}/{SAME[0]}"
    sources = [build(config["data"][split]) for split in ("train", "test")]
    assert all(source.without == tuple(sorted(BROKEN)) for source in sources) and sum(map(len, sources)) == 8
    for split, source in zip(("train", "test"), sources, strict=True):
        images, labels = held_out.pictures(config["data"], split)
        assert len(images) == len(source) and labels.tolist() == source.labels.tolist()
    assert json.loads(json.dumps(config)) == config                             # as a checkpoint stores it
    decoded = note_decoded(monkeypatch)
    assert broken.settled(page_of(folder), "skip", str(tmp_path / "run")) == config and not decoded


def test_a_page_without_broken_files_stays_as_it_is(tmp_path, capsys):
    photos(tmp_path / "photos", broken=False)
    (tmp_path / "photos" / SAME[1]).unlink()
    config = page_of(tmp_path / "photos")
    assert broken.settled(config, "stop", str(tmp_path / "run")) == config and not capsys.readouterr().out
    digits = {"data": {split: {"name": DIGITS, "split": split} for split in ("train", "test")}}
    assert broken.settled(digits, "stop", str(tmp_path / "other")) == digits and not (tmp_path / "other").exists()


def test_a_file_that_the_page_leaves_out_is_no_mistake_and_stays_out(folder, tmp_path):
    config = page_of(folder)
    for split in ("train", "test"):
        config["data"][split]["without"] = [*BROKEN, "rose/0.jpg"]
    assert broken.settled(config, "stop", str(tmp_path)) == config
    config["data"]["train"]["without"] = config["data"]["test"]["without"] = ["rose/cut.jpg", "rose/0.jpg"]
    settled = broken.settled(config, "skip", str(tmp_path))
    assert settled["data"]["train"]["without"] == sorted([*BROKEN, "rose/0.jpg"])


def test_a_split_of_another_folder_is_looked_at_too(folder, tmp_path):
    """A zip beside a folder: each leaves out its own."""
    path = zipped(folder)
    photos(tmp_path / "good", broken=False)
    config = page_of(tmp_path / "good")
    config["data"]["test"] = {"name": "diffusion_jax.data.arrays:Arrays", "path": str(path), "label": "folder"}
    with pytest.raises(ConfigError, match=f"4 of 20 pictures cannot be read: {path}/rose/cut.jpg: "):
        broken.settled(config, "stop", str(tmp_path / "run"))
    settled = broken.settled(config, "skip", str(tmp_path / "run"))
    assert settled["data"]["train"] == config["data"]["train"]
    assert len(build(settled["data"]["test"])) == 8


def test_a_run_goes_on_without_the_same_files_and_says_when_they_are_others(folder, tmp_path):
    before = broken.settled(page_of(folder), "skip", str(tmp_path / "run"))
    marks = fingerprint(build(before["data"]["train"]))
    assert marks["records"] + len(build(before["data"]["test"])) == 8
    good = (folder / "rose/0.jpg").read_bytes()
    for name in ("rose/cut.jpg", "rose/empty.png", "tulip/cut.png", "tulip/text.jpg"):
        (folder / name).write_bytes(good)
    now = broken.settled(page_of(folder), "stop", str(tmp_path / "run"))
    # What is left out is no other config, but other data.
    resume.check_config(before, now, frozenset(), tmp_path / "run")
    assert "records then" in difference(marks, fingerprint(build(now["data"]["train"])))
    with pytest.raises(ConfigError, match="data.train.holdout"):
        other = {**now, "data": {**now["data"], "train": now["data"]["train"] | {"holdout": 0.2}}}
        resume.check_config(before, other, frozenset(), tmp_path / "run")


@dataclass(frozen=True)
class Own:
    """A source of a user's own that lists its files, and cannot leave any out."""

    path: str
    names = None

    @property
    def files(self):
        return Folder(self.path).files

    def content(self, name):
        return Folder(self.path).content(name)


def test_a_source_that_cannot_leave_files_out_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(broken, "build", lambda spec: Own(spec["path"]))
    config = page_of(folder)
    with pytest.raises(ConfigError, match="4 of 12 pictures cannot be read"):
        broken.settled(config, "stop", str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=f"{FOLDER} has no option 'without', by which files are left out"):
        broken.settled(config, "skip", str(tmp_path / "run"))


def test_all_processes_leave_out_what_the_first_one_sees(monkeypatch):
    """Of two processes, whose messages a list stands for: the second looks at nothing."""
    seen = {"train": {"süß.jpg": "x/süß.jpg: cannot"}, "test": {}, "count": 3, "same": ""}
    sent = []

    def broadcast(value):
        value = np.asarray(value)
        if broken.jax.process_index() == 0:
            sent.append(value)
            return value
        first = sent.pop(0)
        assert value.shape == first.shape and value.dtype == first.dtype
        return first

    monkeypatch.setattr(broken.jax, "process_count", lambda: 2)
    monkeypatch.setattr(broken.multihost_utils, "broadcast_one_to_all", broadcast)
    for index, look in ((0, lambda: seen), (1, lambda: pytest.fail("it looked"))):
        monkeypatch.setattr(broken.jax, "process_index", lambda index=index: index)
        assert broken._by_the_first(look) == seen
