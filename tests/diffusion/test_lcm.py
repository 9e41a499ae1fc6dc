"""Latent consistency models: the end of the exact flow as the network, the times, and what is refused."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian, wave
from golden_routines.replay import replay

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, samplers, times
from diffusion_jax.diffusion.lcm import distilled, lcm
from diffusion_jax.types import Prediction

DATA, KEY, DDPM = Gaussian(), jax.random.key(0), process.DDPM("scaled_linear")


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("p", [DDPM, process.Flow()], ids=["ddpm", "flow"])
def test_the_end_of_the_flow_keeps_the_distribution(p, steps):
    """However few steps there are; a network that says E[x0 | x_t] would lose a part of the width."""
    grid = distilled(p, steps) if p is DDPM else times.uniform(p, steps)
    draw = np.random.default_rng(0).standard_normal
    sampler = lcm(p, noise=replay(draw(40000, np.float32) for _ in itertools.count()))
    start = p.alpha(grid[0]) * DATA.mean + DATA.width(p, grid[0]) * draw(40000, np.float32)
    x = samplers.sample(lambda x, t, cond, key: Prediction(DATA.flow(p, x, t, p.t_clean)), sampler, start, grid, {}, KEY)
    np.testing.assert_allclose([x.mean(), x.std()], [DATA.mean, DATA.std], atol=0.015)


def test_a_step_is_the_published_one():
    """By hand at t = 3, where the share of x is seen, and on to a noisy time and to the clean one."""
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    q = 0.1 * 3
    end = 0.25 / (q**2 + 0.25) * x + q / np.sqrt(q**2 + 0.25) * jnp.sin(x)
    for s, alpha in ((1, float(DDPM.alpha(1))), (-1, 1.0)):
        out = samplers.sample(lambda x, t, cond, key: Prediction(jnp.sin(x)), lcm(DDPM, 0.1, wave), x, np.array([3, s]), {}, KEY)
        np.testing.assert_allclose(out, alpha * end + np.sqrt(1 - alpha**2) * wave(KEY, (2, 3), "float32"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps, teacher, total, want", [
    (4, 50, 1000, [999, 759, 499, 259, -1]), (1, 50, 1000, [999, -1]), (3, 8, 1000, [999, 749, 374, -1]), (2, 2, 9, [7, 3, -1]),
])
def test_times_are_some_of_the_teachers(steps, teacher, total, want):
    assert distilled(process.DDPM("scaled_linear", total), steps, teacher).tolist() == want


@pytest.mark.parametrize("call, message", [
    (lambda: lcm(DDPM, scaling=0.0), "scaling is above 0"),
    (lambda: lcm(DDPM, scaling=float("nan")), "scaling is nan"),
    (lambda: distilled(DDPM, 51), "steps of distilled times is 1 ... 50"),
    (lambda: distilled(DDPM, 4, 2000), "teacher is 1 ... 1000"),
    (lambda: distilled(process.Flow(), 4), "continuous"),
])
def test_refusals(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
