"""Skip-layer guidance: in which steps, by a loop written by hand, with other guidance, and how often a network is asked."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.guidance import CFG, chain
from diffusion_jax.diffusion.process import DDPM, Flow
from diffusion_jax.diffusion.samplers import ddim, euler, heun, sample
from diffusion_jax.diffusion.skip_layers import Skip, skip_layers, step_of
from diffusion_jax.diffusion.unipc import unipc
from diffusion_jax.types import Prediction

COND, NULL = {"vec": jnp.full((2, 1), 0.7)}, {"vec": jnp.full((2, 1), -0.2)}
X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


def model(slope, calls=None):
    """x0 = slope x + vec, which counts the calls of the running program."""
    def denoise(x, t, cond, key):
        if calls is not None:
            jax.debug.callback(lambda: calls.append(slope))
        return Prediction(slope * x + cond["vec"])

    return denoise


@pytest.mark.parametrize("skip, count, steps", [
    (Skip((7,)), 28, [1, 2, 3, 4, 5]),                         # 0.28 < i < 5.6
    (Skip((7,)), 10, [1]),                                     # both ends excluded: not step 2 of 10 at 0.2
    (Skip((7,), start=0.1, stop=0.5), 10, [2, 3, 4]),
    (Skip((7,), start=0.0, stop=1.0), 3, [1, 2]),
    (Skip((7,)), 4, []),
])
def test_the_ends_are_excluded(skip, count, steps):
    assert np.flatnonzero(skip.steps(count)).tolist() == steps


@pytest.mark.parametrize("times", [np.array([999, 799, 20, -1]), np.array([1.0, 0.75, 0.1, 0.0])])
def test_a_time_belongs_to_the_step_that_begins_there(times):
    number = step_of(times)
    assert [int(number(t)) for t in times] == [0, 1, 2, 2]
    between = (times[1:] + times[:-1]) / 2
    assert [int(number(t)) for t in between] == [0, 1, 2] and int(number(2 * times[0])) == 0


def by_hand(times, skip, scale, weight):
    """Euler's steps of a flow, x_t = (1 - t) x0 + t eps, whose velocity is guided as in Stable Diffusion 3.5's pipeline."""
    x, steps = np.float64(X), len(times) - 1
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        def velocity(slope, vec, x=x, t=t):
            return (x - (slope * x + vec)) / t

        positive, negative = velocity(0.4, 0.7), velocity(0.4, -0.2)
        v = negative + weight * (positive - negative)
        if i > steps * skip.start and i < steps * skip.stop:
            v = v + scale * (positive - velocity(0.1, 0.7))
        x = x + (s - t) * v
    return x


@pytest.mark.parametrize("skip", [Skip((1, 2), start=0.1, stop=0.5), Skip((1, 2), start=0.0, stop=1.0)])
def test_on_top_of_guidance_it_is_the_loop_by_hand(skip):
    process, times, calls = Flow(), np.linspace(1, 0, 11), []
    full, without = model(0.4), model(0.1, calls)
    guide = chain(skip_layers(skip, jnp.float32(2.8), without, times, full), CFG(4.0, NULL))
    got = sample(guide(model(0.4)), euler(process), X, times, COND, jax.random.key(0))
    np.testing.assert_allclose(got, by_hand(times, skip, 2.8, 4.0), atol=2e-4)
    jax.effects_barrier()
    assert len(calls) == skip.steps(10).sum()                  # the other steps cost nothing


def test_without_other_guidance_the_full_network_is_not_asked_again():
    process, times, calls = Flow(), np.linspace(1, 0, 11), []
    skip = Skip((1, 2), start=0.0, stop=0.6)
    guide = skip_layers(skip, 2.8, model(0.1), times)
    got = sample(guide(model(0.4, calls)), euler(process), X, times, COND, jax.random.key(0))
    np.testing.assert_allclose(got, by_hand(times, skip, 2.8, 1.0), atol=2e-4)
    jax.effects_barrier()
    assert len(calls) == 10


@pytest.mark.parametrize("make", [ddim, heun, unipc])
def test_every_sampler_goes_with_it(make):
    """Over all steps but the first it is the sampler of the denoiser that stands in its place there, whatever the sampler."""
    process = DDPM()
    times = np.array([999, 700, 400, 100, -1])
    skip = Skip((0,), start=0.0, stop=1.0)

    def instead(x, t, cond, key):
        slope = jnp.where(t >= 999, 0.4, 0.4 + 2 * (0.4 - 0.1))
        return Prediction(slope * x + cond["vec"])

    got = sample(skip_layers(skip, 2.0, model(0.1), times)(model(0.4)), make(process), X, times, COND, jax.random.key(0))
    want = sample(instead, make(process), X, times, COND, jax.random.key(0))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("fields, says", [
    (dict(layers=()), "names blocks"), (dict(layers=(-1,)), "0 or more"),
    (dict(layers=(1,), start=0.5, stop=0.2), "exchange them"),
    (dict(layers=(1,), stop=1.5), "stop of skip"), (dict(layers=(1,), scale=float("nan")), "scale of skip"),
])
def test_refusals(fields, says):
    with pytest.raises(ConfigError, match=says) as error:
        Skip(**fields)
    assert "\n" not in str(error.value)
