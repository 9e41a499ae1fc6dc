"""A folder looked over; what it makes of folders that hold no pictures, tests/test_folder_page.py has."""
import own_pictures as own
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data import overview as overviews
from diffusion_jax.data.overview import overview


def test_it_counts_and_measures(tmp_path):
    own.classes(tmp_path / "classes", each=2)
    assert overview(str(tmp_path / "classes")) == (6, 3, None, 3, 10)
    own.captioned(tmp_path / "captioned", 3)
    assert overview(str(tmp_path / "captioned")) == (3, 0, list(own.CAPTIONS), 3, 10)
    own.loose(tmp_path / "grey", 2, (9, 7, 1))
    assert overview(str(tmp_path / "grey")) == (2, 0, None, 1, 7)


def test_labels_that_are_numbers_are_classes(tmp_path):
    own.loose(tmp_path, 2)
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,4\n1.png,0\n")
    assert overview(str(tmp_path)).classes == 5


def test_one_picture_in_ten_may_be_smaller(tmp_path):
    for i, side in enumerate((3, *[20] * 18, 50)):
        own.picture(tmp_path / f"{i:02}.png", i, (side, 60, 3))
    assert overview(str(tmp_path)).side == 20


def test_a_turned_picture_and_one_that_does_not_read(tmp_path):
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert overview(str(tmp_path))[3:] == (3, 20)
    (tmp_path / "turned.jpg").unlink()
    with pytest.raises(ConfigError, match="none of its pictures reads"):
        overview(str(tmp_path))


def test_of_many_some_headers_are_read(tmp_path, monkeypatch):
    own.loose(tmp_path, 6)
    opened = []
    monkeypatch.setattr(overviews, "_shorter_side", lambda file: opened.append(file.name) or 5)
    monkeypatch.setattr(overviews, "LOOKED_AT", 3)
    assert overview(str(tmp_path)).side == 5 and opened == ["0.png", "2.png", "4.png"]
