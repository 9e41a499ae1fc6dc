"""Multistep methods on integrands that they must integrate exactly, and what they refuse. Their orders, moments and identities
stand in the tables of test_samplers.py."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import error, wave

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import multistep, process, samplers, times
from diffusion_jax.types import Prediction

EDM, DDPM = process.EDM(), process.DDPM()
ZERO = process.DDPM("scaled_linear", zero_snr=True)
KEY = jax.random.key(0)


def path(sampler, predict, grid):
    """Every x of a run from x = 1 with EDM's process, of which x0 or eps is a function of the time alone."""
    step = jax.jit(lambda x, state, t, s: sampler.step(lambda x, t, key: predict(x, t), x, state, t, s, KEY))
    x = jnp.ones(2)
    state, chain = sampler.init(x, len(grid) - 1), [x]
    for t, s in itertools.pairwise(grid):
        x, state = step(x, state, t, s)
        chain.append(x)
    return np.stack(chain)[:, 0]


def test_plms_integrates_cubics_once_it_has_four_values():
    """dx/dt = eps: Adams-Bashforth of k values is exact for polynomials of degree k - 1."""
    grid = np.linspace(3.0, 1.0, 9)
    with jax.enable_x64(True):
        for degree in range(4):
            chain = path(multistep.plms(EDM), lambda x, t, n=degree: Prediction(x - t * t**n), jnp.asarray(grid))
            missed = np.diff(chain) - np.diff(grid ** (degree + 1)) / (degree + 1)
            first_exact = {0: 0, 1: 0, 2: 2, 3: 3}[degree]                     # the first step is improved Euler, then 2, 3, 4
            assert np.abs(missed[first_exact:]).max() < 1e-12, (degree, missed)
            assert not first_exact or np.abs(missed[:first_exact]).min() > 1e-4


@pytest.mark.parametrize(("form", "options"), [
    ("x0", dict(corrector="heun")), ("x0", dict(order=3)), ("eps", dict(corrector="heun")), ("eps", dict(order=3)),
], ids=["++2", "++3", "2", "3"])
def test_dpm_solver_integrates_what_is_linear_in_half_log_snr(form, options):
    """With l = -ln t: d(x / t) = exp(l) x0 dl and dx = -exp(-l) eps dl, both for a value of l itself."""
    grid, start = np.geomspace(5.0, 0.5, 21), 2 if options.get("order") == 3 else 1

    def predict(x, t):
        value = 0 * x - jnp.log(t)
        return Prediction(value if form == "x0" else x - t * value)

    with jax.enable_x64(True):
        chain = path(multistep.dpm_solver(EDM, form=form, **options), predict, jnp.asarray(grid))
    value = -np.log(grid)
    exact = {"x0": (value - 1) / grid, "eps": (value + 1) * grid}[form]
    missed = np.diff(chain / grid if form == "x0" else chain) - np.diff(exact)
    assert np.abs(missed[start:]).max() < 1e-12 and np.abs(missed[0]) > 1e-4


@pytest.mark.parametrize("form", ["x0", "eps"])
def test_the_third_order_takes_half_of_a_second_derivative(form):
    """Of l^2 it misses half of the integral of (l - l_t)^2, whatever the grid: its slope is exact."""
    value = np.linspace(-1.2, 0.9, 19) ** 3                                        # steps of many sizes
    grid = np.exp(-value)

    def predict(x, t):
        square = 0 * x + jnp.log(t) ** 2
        return Prediction(square if form == "x0" else x - t * square)

    with jax.enable_x64(True):
        chain = path(multistep.dpm_solver(EDM, order=3, form=form), predict, jnp.asarray(grid))
    sign, h = (1, np.diff(value)) if form == "x0" else (-1, -np.diff(value))
    whole = np.diff((value**2 - 2 * sign * value + 2) / grid**sign)
    half = sign * (((h**2 - 2 * h + 2) / grid[1:] ** sign) - 2 / grid[:-1] ** sign) / 2
    missed = np.diff(chain / grid if form == "x0" else chain) - whole
    np.testing.assert_allclose(missed[2:], -sign * half[2:], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("steps", "options", "first_order"), [
    (14, dict(), True), (15, dict(), False), (14, dict(lower_order_final=False), False), (15, dict(euler_at_final=True), True),
], ids=["few", "many", "few, not lowered", "Euler"])
def test_the_last_step_is_of_first_order_where_it_should_be(steps, options, first_order):
    grid = np.geomspace(5.0, 0.5, steps + 1)
    with jax.enable_x64(True):
        chain = path(multistep.dpm_solver(EDM, **options), lambda x, t: Prediction(jnp.sin(t) + 0 * x), jnp.asarray(grid))
    x0, shrunk = np.sin(grid[:-1]), grid[1:] / grid[:-1]
    euler = shrunk * chain[:-1] + (1 - shrunk) * x0
    assert (abs(chain[-1] - euler[-1]) < 1e-12) == first_order
    assert abs(chain[1] - euler[0]) < 1e-12 < abs(chain[-3] - euler[-3])


def test_third_order_formulas_are_the_better_second_order_ones():
    with jax.enable_x64(True):
        second, third = (error(process.Cosine(), lambda p, n=n: multistep.dpm_solver(p, order=n))(80) for n in (2, 3))
        assert third < second / 2


@pytest.mark.parametrize("form", ["x0", "eps"])
@pytest.mark.parametrize("steps", [1, 20])
def test_the_stochastic_solver_ends_on_x0(form, steps):
    """Whatever came before: nothing of the noise is left at a clean time."""
    sampler = multistep.dpm_solver(DDPM, form=form, sde=True, noise=wave)
    x, grid = jnp.linspace(-1, 1, 6).reshape(2, 3), times.uniform(DDPM, steps)
    found = samplers.sample(lambda x, t, cond, key: Prediction(jnp.full_like(x, 0.3)), sampler, x, grid, {}, KEY)
    np.testing.assert_allclose(found, 0.3, rtol=1e-5)


@pytest.mark.parametrize("call, message", [
    (lambda: multistep.plms(ZERO), "dpmpp_2m"),
    (lambda: multistep.dpm_solver(ZERO, form="eps"), "form x0"),
    (lambda: multistep.dpm_solver(EDM, form="x00"), "did you mean 'x0'"),
    (lambda: multistep.dpm_solver(EDM, corrector="huen"), "did you mean 'heun'"),
    (lambda: multistep.dpm_solver(EDM, order=4), "orders 1, 2 and 3"),
    (lambda: multistep.plms(EDM).init(jnp.zeros(2), 1), "at least 2 steps"),
])
def test_refusals(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
