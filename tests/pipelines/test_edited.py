"""Rows of edited pictures: their files, their names, and how near they are to what they were made of."""
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.edited import Edited, picture_file

ROWS = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 1), dtype=np.uint8)


def test_rows_are_saved_as_a_grid_and_frames(tmp_path):
    rows = Edited(ROWS, "three")
    files = rows.save(tmp_path / "x.png")
    assert files[:2] == [tmp_path / "x.png", tmp_path / "x.gif"] and all(file.is_file() for file in files)
    with Image.open(files[0]) as grid, Image.open(files[1]) as frames:
        np.testing.assert_array_equal(np.asarray(grid)[10:18, :8], ROWS[1, 0, ..., 0])
        assert frames.n_frames == 3
    single = Edited(ROWS[:1], "one")
    assert single.save(tmp_path / "y") == [tmp_path / "y.png"]
    assert single.save(tmp_path / "v1.5") == [tmp_path / "v1.5.png"] and not (tmp_path / "v1.png").exists()
    assert rows.save(tmp_path / "v1.5")[:2] == [tmp_path / "v1.5.png", tmp_path / "v1.5.gif"]


@pytest.mark.parametrize(("out", "file"), [
    ("x.png", "x.png"), ("x.gif", "x.png"), ("x.mp4", "x.png"), ("x", "x.png"), ("v1.5", "v1.5.png"), ("a.b/c", "a.b/c.png"),
    ("v1.5.png", "v1.5.png"), (".hidden", ".hidden.png"), ("../x", "../x.png"),
])
def test_the_name_that_was_asked_for(out, file):
    assert str(picture_file(out)) == file


@pytest.mark.parametrize("out", ["x.npz", "x/", "x.jpg", "x.JPEG", "x.json", "a.png/"])
def test_names_of_other_files_are_refused(out):
    with pytest.raises(ConfigError, match="end it in .png, or give a name without a suffix"):
        picture_file(out)


def test_rows_that_keep_something_are_measured_and_no_others():
    assert Edited(ROWS, "of no pictures").likeness() == {}
    assert Edited(ROWS, "all new", ROWS[0]).likeness() == {}
    known = np.ones((1, 8, 8, 1), np.float32)
    near = Edited(ROWS, "kept", ROWS[0], {0: "same", 2: "other"}, {2: known}).likeness()
    apart = np.abs(np.float64(ROWS[2]) - ROWS[0])
    assert near["same"] == {"PSNR (dB)": np.inf}
    assert near["other"] == {
        "PSNR (dB)": pytest.approx(np.mean(10 * np.log10(255**2 / np.mean(apart**2, axis=(1, 2, 3))))),
        "most outside": pytest.approx(apart.max()),
    }
