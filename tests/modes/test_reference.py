"""Mode `reference`: the statistics of a page's data, or of images in files."""
import shutil

import numpy as np
import pytest
from pages import ask, page

from diffusion_jax.build import ConfigError

pytestmark = pytest.mark.usefixtures("stub")


def test_a_reference_needs_images_and_a_place(tmp_path, digits):
    folder = str(digits / "folder")
    for options, says in ((dict(), "needs images"), (dict(images=folder, out="x.png"), "end it in .npz"),
                          (dict(images=folder, config=page("digits")), "leave one out"),
                          (dict(images=folder, seed=1), "--seed belongs to")):
        with pytest.raises(ConfigError, match=says):
            ask("reference", tmp_path, features="stub", **options)
    ask("reference", tmp_path, features="stub", config=page("digits"))
    with np.load(tmp_path / "reference.npz") as arrays:
        assert arrays["mu"].shape == (6,) and arrays["mu_s"].shape == (3,)
        assert arrays["images"] == 1500 and arrays["network"] == "stub"


def test_a_reference_of_files_that_changed_is_made_anew(tmp_path, digits):
    folder = shutil.copytree(digits / "folder", tmp_path / "folder")
    for count in (60, 59):
        ask("reference", tmp_path, features="stub", images=str(folder))
        with np.load(tmp_path / "reference.npz") as arrays:
            assert arrays["images"] == count
        next((folder / "3").iterdir()).unlink()
