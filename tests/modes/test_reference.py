"""Mode `reference`: the statistics of a page's data, or of images in files."""
import os
import shutil

import numpy as np
import pytest
from pages import ask, page, tear_writes

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_png

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


def of_npz(root):
    return dict(images=str(root / "x.npz")), lambda images: np.savez(root / "x.npz", arr_0=images)


def of_folder(root):
    return dict(images=str(root / "x")), lambda images: [save_png(root / "x" / f"{i}.png", each) for i, each in enumerate(images)]


def of_page(root):
    config = page("digits")
    config.data.train = dict(name="diffusion_jax.data.folder:Folder", path=str(root / "x"))
    return dict(config=config), of_folder(root)[1]


@pytest.mark.parametrize("source", [of_npz, of_folder, of_page])
def test_images_that_were_replaced_have_statistics_of_their_own(tmp_path, source):
    """By as many of the same size, under the same names, even of the same time; and the statistics of before are not lost."""
    options, write = source(tmp_path)
    first, second = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8, 1), np.uint8)
    means = []
    for images in (first, second, second):
        write(images)
        for path in tmp_path.rglob("x*"):
            os.utime(path, ns=(1, 1))
        ask("reference", tmp_path / "work", features="stub", batch=8, **options)
        with np.load(tmp_path / "work" / "reference.npz") as arrays:
            means.append(arrays["mu"])
    ask("reference", tmp_path / "other", features="stub", batch=8, **options)
    with np.load(tmp_path / "other" / "reference.npz") as arrays:
        np.testing.assert_array_equal(arrays["mu"], means[1])
    assert np.abs(means[0] - means[1]).max() > 0.01 and (means[1] == means[2]).all()
    with np.load(tmp_path / "work" / "reference-earlier.npz") as arrays:
        np.testing.assert_array_equal(arrays["mu"], means[0])
    assert len(list((tmp_path / "work").glob("*.npz"))) == 2


def test_what_has_no_statistics_is_refused_before_the_network_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_jax.evaluation.features.network_of", lambda *_: pytest.fail("it is read"))
    save_png(tmp_path / "one" / "0.png", np.zeros((8, 8, 1), np.uint8))
    without = {name: part for name, part in page("digits").to_dict().items() if name != "data"}
    for options, says in ((dict(images=str(tmp_path / "one")), "at least 2 images"), (dict(images="missing"), "no such file"),
                          (dict(config=without), "without data"),
                          (dict(images=str(tmp_path / "one"), features="dinov2"), "dinov2=FILE")):
        with pytest.raises(ConfigError, match=says):
            ask("reference", tmp_path, **{"features": "stub"} | options)


def test_statistics_that_are_ended_half_way_leave_the_last(tmp_path, digits, monkeypatch):
    options = dict(features="stub", images=str(digits / "digits.npz"), out=str(tmp_path / "x.npz"))
    ask("reference", tmp_path, **options)
    before = (tmp_path / "x.npz").read_bytes()
    tear_writes(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        ask("reference", tmp_path, **options)
    assert (tmp_path / "x.npz").read_bytes() == before and not list(tmp_path.glob(".x.*"))
