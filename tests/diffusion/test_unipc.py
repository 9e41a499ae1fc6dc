"""UniPC and DEIS on integrands that they must integrate exactly, and what they refuse. Their orders, identities and moments stand
in the tables of test_samplers.py and test_reach.py."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import error
from scipy.integrate import quad

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, unipc
from diffusion_jax.types import Prediction

EDM, COSINE, ZERO = process.EDM(), process.Cosine(), process.DDPM("scaled_linear", zero_snr=True)
KEY = jax.random.key(0)
GRID = np.geomspace(5.0, 0.5, 13)


def run(sampler, form, power):
    """Every x of a run from x = 1 over GRID with EDM's process, of which x0 or eps is a power of l = -ln t."""
    def denoise(x, t, key):
        value = (-jnp.log(t)) ** power + 0 * x
        return Prediction(value if form == "x0" else x - t * value)

    with jax.enable_x64(True):
        step = jax.jit(lambda x, state, t, s: sampler.step(denoise, x, state, t, s, KEY))
        x = jnp.ones(2)
        state, chain = sampler.init(x, len(GRID) - 1), [x]
        for t, s in itertools.pairwise(jnp.asarray(GRID)):
            x, state = step(x, state, t, s)
            chain.append(x)
    return np.stack(chain)[:, 0]


def exact(form, power):
    """What every step of such a run should add: to x / t, whose slope is e^l x0 dl, and to x, whose slope is -e^-l eps dl."""
    sign = 1 if form == "x0" else -1
    ends = itertools.pairwise(-np.log(GRID))
    return np.array([sign * quad(lambda v: np.exp(sign * v) * v**power, a, b, epsabs=1e-14)[0] for a, b in ends])


def missed(sampler, form, power):
    """How far every step is from what it should add, [N]."""
    chain = run(sampler, form, power)
    return np.diff(chain / GRID if form == "x0" else chain) - exact(form, power)


METHODS = {     # name -> (the sampler, its form, the power that it is exact for, from which step on)
    "unip_3": (unipc.unipc(EDM, 3, uncorrected=99, lower_order_final=False), "x0", 2, 2),
    "unip_3_eps": (unipc.unipc(EDM, 3, "eps", uncorrected=99, lower_order_final=False), "eps", 2, 2),
    "deis_2": (unipc.deis(EDM, 2, lower_order_final=False), "eps", 1, 1),
    "deis_3": (unipc.deis(EDM, 3, lower_order_final=False), "eps", 2, 2),
}


@pytest.mark.parametrize("name", [name if name == "deis_3" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS])
def test_a_predictor_integrates_polynomials_of_its_order(name):
    sampler, form, power, first = METHODS[name]
    off = np.abs(missed(sampler, form, power))
    assert off[first:].max() < 1e-11 and off[0] > 1e-4
    assert np.abs(missed(sampler, form, power + 1)[-1]) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("form", ["x0", "eps"])
@pytest.mark.parametrize("order", [2, 3])
def test_the_corrector_integrates_one_power_more(form, order):
    """A step's correction comes with the next one: a state is off by its predictor's last step, and by corrected ones before."""
    whole, bare = (
        missed(unipc.unipc(EDM, order, form, uncorrected=late, lower_order_final=False), form, order) for late in (0, 99)
    )
    before = np.cumsum(whole) - bare
    assert np.ptp(before[order:]) < 1e-11 < 1e-6 < np.ptp(before[:order])


@pytest.mark.parametrize("z", [-9.0, -1.01, -0.99, -0.02, 1e-4, 0.5, 0.99, 3.0])
def test_moments_are_those_of_quadrature(z):
    want = [z * quad(lambda c, j=j: np.exp((1 - c) * z) * c**j, 0, 1, epsabs=1e-14)[0] for j in (1, 2, 3)]
    got = unipc._moments(jnp.float32(1), jnp.float32(z), jnp.expm1(jnp.float32(z)))
    np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.slow
def test_each_order_is_better_than_the_one_before():
    with jax.enable_x64(True):
        errors = [error(COSINE, lambda p, n=n: unipc.unipc(p, n, lower_order_final=False))(40) for n in (1, 2, 3)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.mark.parametrize("call, message", [
    (lambda: unipc.unipc(ZERO, form="eps"), "form x0"),
    (lambda: unipc.unipc(process.Flow(), variant="bh1"), "variant bh2"),
    (lambda: unipc.unipc(EDM, form="x00"), "did you mean 'x0'"),
    (lambda: unipc.unipc(EDM, variant="bh3"), "unknown variant"),
    (lambda: unipc.unipc(EDM, order=4), "orders 1, 2 and 3"),
    (lambda: unipc.deis(EDM, order=0), "orders 1, 2 and 3"),
    (lambda: unipc.deis(process.Flow()), "use unipc"),
])
def test_refusals(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
