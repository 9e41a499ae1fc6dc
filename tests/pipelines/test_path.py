"""The path of pictures from noise: it ends in what a call makes, and latents are shown as pictures."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.path import path
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import Request
from diffusion_jax.runs.folder import Model, Run
from pipelines.test_latent import MODEL
from pipelines.test_tokens import RUN
from pipelines.toy_task import make, parameters


def test_a_path_ends_in_what_a_call_makes(folders):
    pipe = pipeline(folders.label)
    points = list(path(pipe, [3, 4], num=2, seed=7, every=3))
    assert [point.step for point in points] == [0, 3, 4]
    levels = [point.level for point in points]
    assert levels == sorted(levels, reverse=True) and levels[0] > 50 and levels[-1] < 0.02
    want = pipe([3, 4], num=2, seed=7).images
    for images in (points[-1].noisy, points[-1].clean):
        np.testing.assert_array_equal(images, want)
    for point in points:
        assert point.noisy.shape == point.clean.shape == want.shape and point.noisy.dtype == np.uint8
    noise = points[0].noisy / 127.5 - 1  # of a standard deviation of 1, cut at 1
    assert abs(noise.mean()) < 0.1 and 0.65 < noise.std() < 0.8


def test_latents_are_shown_as_pictures():
    """A latent is three times the mean of 2 x 2 pixels, so that all four of them are alike."""
    pipe = Pipeline(Run("run", 0, "ema", {}, MODEL), Recipe(steps=2))
    points = list(path(pipe, Request(label=1), num=2))
    np.testing.assert_array_equal(points[-1].clean, pipe(Request(label=1), num=2).images)
    for images in (point.noisy for point in points):
        assert images.shape == (2, 8, 8, 1)
        np.testing.assert_array_equal(images[:, ::2, ::2], images[:, 1::2, 1::2])


@pytest.mark.slow
def test_of_a_text_too_it_ends_in_what_a_call_makes(folders):
    pipe = pipeline(folders.text).using(guidance=2.5)
    request = Request("a three", "eight")
    np.testing.assert_array_equal(list(path(pipe, request, num=2))[-1].noisy, pipe(request, num=2).images)


def test_where_nothing_is_left_of_the_pictures_the_noise_level_is_infinite():
    model = Model(parameters(0.1, -0.2, 0.3, 0.05), None, make("flow", shape=(8, 8, 1)))
    points = list(path(Pipeline(Run("run", 0, "ema", {}, model), Recipe(steps=2)), Request(label=1)))
    assert [point.level for point in points] == pytest.approx([np.inf, 1, 0])


def test_what_has_no_path_of_one_model_is_refused(folders):
    for helpers in (dict(upsamplers=[folders.upsampler]), dict(rerank=folders.classifier, candidates=2)):
        with pytest.raises(ConfigError, match="a path is that of one model"):
            path(pipeline(folders.label, **helpers), 3)
    with pytest.raises(ConfigError, match="this is for diffusion models"):
        path(pipeline(RUN), "a three")
    for every in (0, 1.5):
        with pytest.raises(ConfigError, match="every is"):
            path(pipeline(folders.label), 3, every=every)
