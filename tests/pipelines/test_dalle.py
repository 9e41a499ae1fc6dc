"""From captions to images: the same image in any batch, completion, ranking, likelihood, what is refused."""
import dataclasses

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.pipelines.dalle import Draw, generate, likelihood, upper
from diffusion_jax.runs.folder import Model
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.dvae import DiscreteVAE

KEY = jax.random.key(0)
FIRST = DiscreteVAE(DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=4, channels=1), (8, 8, 1))
NET = DALLE(text_codes=10, image_codes=8, text_length=3, grid=4, width=16, depth=2, heads=2, start=0)
TASK = Autoregressive(NET, FIRST, drop=0.1)
TEXT = np.array([[1, 2, 0], [3, 0, 0], [4, 5, 6]], np.int32)


@pytest.fixture(scope="module")
def trained():
    batch = {"image": np.zeros((1, 8, 8, 1), np.float32), "tokens": TEXT[:1]}
    return Model(jax.jit(TASK.init)(KEY, batch), jax.jit(FIRST.init)(KEY, batch), TASK)


def images(trained, how=Draw(top_p=0.9), text=TEXT, batch=3, **options):
    return np.concatenate(list(generate(trained, how, text, len(text), 0, batch, **options)))


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch(trained):
    whole = images(trained)
    assert whole.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(images(trained, batch=2), whole, atol=1e-5)
    np.testing.assert_allclose(images(trained, text=TEXT[:1])[0], whole[0], atol=1e-5)


@pytest.mark.slow
def test_given_halves_stay_and_guidance_needs_dropped_captions(trained):
    picture = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    codes = upper(trained, picture)
    assert codes.shape == (3, 8)
    made = images(trained, codes=codes)
    again = FIRST.decode(trained.first, np.concatenate([codes, np.zeros((3, 8), np.int32)], 1))
    apart = np.abs(made - again).max((0, 2, 3))                                  # by row; those in the middle see both halves
    assert apart[:3].max() < 0.02 and apart[5:].min() > 0.1
    guided, more = (images(trained, Draw(top_k=1, guidance=w)) for w in (2.0, 9.0))
    assert guided.shape == more.shape and np.abs(guided - more).max() > 0.1
    with pytest.raises(ConfigError, match="task.drop"):
        generate(trained.replace(task=dataclasses.replace(TASK, drop=0.0)), Draw(guidance=2.0), TEXT, 3, 0)
    with pytest.raises(ConfigError, match="captions of 3 tokens"):
        images(trained, text=TEXT[:, :2])
    with pytest.raises(ConfigError, match="first stage"):
        generate(trained.replace(first=None), Draw(), TEXT, 3, 0)


@pytest.mark.slow
def test_likelihood_is_in_bits_per_token(trained):
    batch = {"tokens": TEXT, "codes": np.zeros((3, 16), np.int32)}
    figures = likelihood(trained, iter([batch, batch]))
    want = TASK.terms(trained.params, TEXT, batch["codes"])
    np.testing.assert_allclose(figures["image (bits per token)"], want["image"].mean() / np.log(2), rtol=1e-5)
    assert len(figures) == 3


def test_ways_to_draw_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="temperature is positive"):
        Draw(temperature=0)
    for temperature in (1e-300, -1.0):
        with pytest.raises(ConfigError, match="temperature is positive"):
            Draw(temperature=temperature)
    for options, says in ((dict(top_k=1, temperature=0.5), "1 takes the most likely token at every temperature"),
                          (dict(top_k=2.5), "top_k is a whole number, got 2.5"), (dict(guidance="2"), "guidance is a number"),
                          (dict(top_p=float("nan")), "top_p is nan"), (dict(temperature=None), "temperature is a number")):
        with pytest.raises(ConfigError, match=says):
            Draw(**options)
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        Draw.of({"topk": 3})
    with pytest.raises(ConfigError, match="top_p is 0 ... 1, got 1.5"):
        Draw(top_p=1.5)
    with pytest.raises(ConfigError, match="top_k is 0 or more, got -1"):
        Draw(top_k=-1)
    with pytest.raises(ConfigError, match="did you mean 'guidance'"):
        Draw().using(guidence=2.0)


def test_scales_of_guidance_are_apart_from_the_rest():
    static, scale = Draw(guidance=3.0, top_k=5).split()
    assert static == Draw(guidance=9.0, top_k=5).split()[0] and float(scale) == 3 and static.guides
    assert not Draw(top_k=5).split()[0].guides
