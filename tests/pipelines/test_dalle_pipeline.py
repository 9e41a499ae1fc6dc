"""From captions to images: the same image in any batch, completion, ranking, likelihood, what is refused."""
import dataclasses

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.pipelines.dalle import Draw, generate, likelihood, rerank, upper
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
    return jax.jit(TASK.init)(KEY, batch), {"first_stage": jax.jit(FIRST.init)(KEY, batch)}


def images(trained, how=Draw(top_p=0.9), text=TEXT, batch=3, **options):
    return np.concatenate(list(generate(TASK, *trained, how, text, len(text), 0, batch, **options)))


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch(trained):
    whole = images(trained)
    assert whole.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(images(trained, batch=2), whole, atol=1e-5)
    np.testing.assert_allclose(images(trained, text=TEXT[:1])[0], whole[0], atol=1e-5)


@pytest.mark.slow
def test_given_halves_stay_and_guidance_needs_dropped_captions(trained):
    picture = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    codes = upper(TASK, trained[1], picture)
    assert codes.shape == (3, 8)
    made = images(trained, given=codes)
    again = FIRST.decode(trained[1]["first_stage"], np.concatenate([codes, np.zeros((3, 8), np.int32)], 1))
    apart = np.abs(made - again).max((0, 2, 3))                                  # by row; those in the middle see both halves
    assert apart[:3].max() < 0.02 and apart[5:].min() > 0.1
    guided, more = (images(trained, Draw(top_k=1, guidance=w)) for w in (2.0, 9.0))
    assert guided.shape == more.shape and np.abs(guided - more).max() > 0.1
    with pytest.raises(ConfigError, match="task.drop"):
        generate(dataclasses.replace(TASK, drop=0.0), *trained, Draw(guidance=2.0), TEXT, 3, 0)
    with pytest.raises(ConfigError, match="captions of 3 tokens"):
        images(trained, text=TEXT[:, :2])
    with pytest.raises(ConfigError, match="first stage"):
        generate(TASK, trained[0], None, Draw(), TEXT, 3, 0)


def test_the_best_of_many_come_first():
    pictures = np.arange(6).reshape(2, 3, 1, 1, 1)
    best = rerank(pictures, np.array([[0.1, 0.9, 0.5], [3, 2, 1]]), 2)
    assert best.reshape(2, 2).tolist() == [[1, 2], [3, 4]]


@pytest.mark.slow
def test_likelihood_is_in_bits_per_token(trained):
    batch = {"tokens": TEXT, "codes": np.zeros((3, 16), np.int32)}
    found = likelihood(TASK, *trained, iter([batch, batch]))
    want = TASK.terms(trained[0], TEXT, batch["codes"])
    np.testing.assert_allclose(found["image (bits per token)"], want["image"].mean() / np.log(2), rtol=1e-5)
    assert len(found) == 3


def test_ways_to_draw_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="temperature is positive"):
        Draw(temperature=0)
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        Draw.of({"topk": 3})
