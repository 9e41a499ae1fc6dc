"""Edits and experiments as sheets: the rows of `pipe.edit`, the calls of the network that samplers make."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.studio.desk import filled
from diffusion_jax.studio.lab import EDITS, LAB, calls_of, diversity, sheet


def quiet(news):
    return None


@pytest.mark.parametrize(("sampler", "calls"), [("ddim", 6), ("euler", 6), ("dpmpp_2m", 6), ("heun", 12), ("ancestral", 6)])
def test_calls_of_the_network_are_counted(desk, sampler, calls):
    assert calls_of(desk.pipe("label").using(**{"steps": 6} | ({} if sampler == "ddim" else {"sampler": sampler}))) == calls


@pytest.mark.slow
def test_diversity_is_the_mean_distance_of_pairs():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    flat = images.reshape(3, -1) / 127.5
    far = np.mean([np.linalg.norm(flat[i] - flat[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    assert diversity(images) == f"diversity {far:.2f}" and diversity(images[:1]) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["guidance", "phi", "CADS", "switch", "samplers", "strength", "inversion", "mix"])
def test_every_experiment_makes_its_sheet(desk, name):
    form = filled("label", desk.pipe("label"), num=2, guidance=2.0 if name == "phi" else 1.0)
    image = np.full((8, 8, 1), 99, np.uint8)
    made = sheet(desk, form, name, None, [image] if name in EDITS else [], "7", quiet)
    assert len(made.names) == len(made.images) == len(made.captions) >= 3
    assert all(picture.dtype == np.uint8 for row in made.images for picture in row)
    if name not in ("samplers", "inversion"):
        assert len(made.names) == len((EDITS | LAB)[name].values)


@pytest.mark.slow
def test_rows_are_those_of_the_library(desk):
    form = filled("label", desk.pipe("label"), num=2, seed=5, classes=["3"])
    made = sheet(desk, form, "guidance", 2.5, [], "", quiet)
    rows = desk.pipe("label").edit.guidance("3", values=[2.5], num=2, seed=5).images
    assert np.array_equal(made.images[0][0][:, :8], rows[0, 0])


@pytest.mark.parametrize(("name", "images", "says"), [
    ("strength", 0, "load a picture"), ("variations", 1, "this run has no variations"), ("nothing", 0, "this run has no nothing"),
])
def test_what_lacks_something_is_refused(desk, name, images, says):
    form = filled("label", desk.pipe("label"))
    with pytest.raises(ConfigError, match=says):
        sheet(desk, form, name, None, [np.zeros((8, 8, 1), np.uint8)] * images, "", quiet)
