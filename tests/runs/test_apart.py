"""What is written lies apart from the pictures that are read."""
import own_pictures as own
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.runs.apart import check_apart

FOLDER = "diffusion_jax.data.folder:Folder"


def data_of(path):
    return {split: {"name": FOLDER, "path": str(path), "split": split} for split in ("train", "test")}


@pytest.mark.parametrize("place", ["", "run", "rose", "rose/run", "../photos/run", "link/run"])
def test_a_run_in_its_own_pictures_is_refused(tmp_path, place):
    photos = own.classes(tmp_path / "photos")
    (tmp_path / "link").symlink_to(photos)
    folder = tmp_path / place if place.startswith("link") else photos / place
    with pytest.raises(ConfigError, match="--workdir .* lies in the folder of the pictures, .*photos"):
        check_apart(data_of(photos), folder, "--workdir")


def test_beside_them_and_in_dotted_folders_it_is_not(tmp_path, monkeypatch):
    photos = own.classes(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for folder in ("photos2", tmp_path / "run", photos / ".run", "."):
        check_apart(data_of("photos/"), folder, "--workdir")
    with pytest.raises(ConfigError):
        check_apart(data_of("photos/"), photos / "run", "--workdir")


def test_where_pictures_are_listed_no_others_are_read(tmp_path):
    photos = own.classes(tmp_path / "photos")
    (photos / "metadata.jsonl").write_text("")
    check_apart(data_of(photos), photos / "run", "--workdir")


def test_other_data_have_no_folder_of_pictures(tmp_path):
    digits = {"name": "diffusion_jax.data.digits:Digits"}
    check_apart({"train": digits, "test": digits}, tmp_path, "--workdir")
