"""What first stages make of held-out images: their figures, and the picture of what is left."""
import numpy as np
import pytest

from diffusion_jax.evaluation import likelihood
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
