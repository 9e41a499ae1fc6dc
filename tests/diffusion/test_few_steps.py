"""Steps along the flow of Gaussian data, of which every path is known, and what consistency models and mean flows are made of."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

from diffusion_jax.diffusion import few_steps, guidance, process, samplers, times
from diffusion_jax.types import UNTIL, Prediction

DATA, KEY, FLOW = Gaussian(), jax.random.key(0), process.Flow()
PROCESSES = {"ddpm": process.DDPM("squaredcos"), "cosine": process.Cosine(), "edm": process.EDM(), "flow": FLOW,
             "shifted": process.Flow(3.0)}
each = pytest.mark.parametrize("p", [
    pytest.param(p, id=name, marks=() if name in ("flow", "ddpm") else pytest.mark.slow) for name, p in PROCESSES.items()])


def mean_velocity(z, t, s):
    """Of the flow with Flow's times: the way over the time; the velocity itself where both are one."""
    apart = jnp.where(t == s, 1, t - s)
    mean = (z - DATA.flow(FLOW, z, t, jnp.where(t == s, 0, s))) / jnp.where(t == s, 1, apart)
    x0 = DATA.x0(FLOW, z, t)
    return jnp.where(t == s, (z - x0) / t, mean)


def told(x, t, cond, key):
    """The exact denoiser that is told, as a noise label, where a step ends."""
    s = cond[UNTIL][:, None] / 1000 if UNTIL in cond else t
    return Prediction(x - t * mean_velocity(x, t, s))


@each
def test_earlier_times_lie_on_the_same_path_by_the_published_ratio(p):
    """By hand of 2406.14548's formula, on sigma / alpha."""
    r = np.array([0.05, 0.5, 1.0, 5.0, 40.0], np.float32)
    s = few_steps.earlier(p, p.time(r), 3)
    want = r * np.maximum(0, 1 - (1 + 8 / (1 + np.exp(r))) / 2**3)
    np.testing.assert_allclose(p.sigma(s) / p.alpha(s), want, rtol=2e-3, atol=1e-6)
    begin = few_steps.earlier(p, p.time(r), 0)
    assert np.asarray(p.sigma(begin) == 0).all() and np.asarray(begin == p.t_clean).all()


def test_the_distance_is_a_parabola_near_0_and_the_norm_far_away():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1)), jnp.float32)
    norm = np.linalg.norm(np.asarray(y).reshape(3, -1), axis=1)
    c = 0.5 * 4
    np.testing.assert_allclose(few_steps.huber(y, 0.5), np.sqrt(norm**2 + c**2) - c, rtol=1e-5)
    np.testing.assert_allclose(few_steps.huber(1e3 * y), 1e3 * norm, rtol=1e-4)
    np.testing.assert_allclose(few_steps.huber(y, 0.0), norm, rtol=1e-6)
    flat = jax.grad(lambda y: few_steps.huber(y, 0.0)[0])(jnp.zeros((1, 4)))
    np.testing.assert_array_equal(flat, 0)


@each
@pytest.mark.parametrize("order", [1, 2])
def test_a_step_of_the_flow_is_of_its_order(p, order):
    """Halving a step divides its error by 4 and 8, those of one step."""
    def error(share):
        with jax.enable_x64(True):
            r = jnp.asarray([0.4, 1.0, 2.0])
            t, s = p.time(r), p.time(r * (1 - share))
            x = p.alpha(t) * DATA.mean + 1.3 * DATA.width(p, t)
            stepped = few_steps.followed(lambda x, t: DATA.x0(p, x, t), p, x, t, s, order)
            return np.abs(stepped - DATA.flow(p, x, t, s)).max()

    assert 0.8 < np.log2(error(0.1) / error(0.05)) / (order + 1) < 1.25


def test_a_step_to_a_clean_time_ends_at_x0_and_draws_no_nan():
    x, t = jnp.ones((2, 3)), jnp.array([0.5, 0.25])
    for order in (1, 2):
        got = few_steps.followed(lambda x, t: 0.1 * x / t[:, None], FLOW, x, t, jnp.zeros(2), order)
        np.testing.assert_allclose(got, 0.1 / np.repeat(t, 3).reshape(2, 3), rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_mean_velocity_takes_any_number_of_steps_exactly(steps):
    x = jnp.linspace(-2, 2, 8)[:, None]
    got = samplers.sample(told, few_steps.meanflow(FLOW), x, times.uniform(FLOW, steps), {}, KEY)
    np.testing.assert_allclose(got, DATA.flow(FLOW, x, jnp.float32(1), jnp.float32(0)), atol=1e-5)


def test_where_it_is_not_told_it_is_the_denoiser_of_a_flow():
    x = jnp.linspace(-2, 2, 8)[:, None]
    got, want = (samplers.sample(d, samplers.heun(FLOW), x, times.uniform(FLOW, 5), {}, KEY)
                 for d in (told, DATA.denoiser(FLOW)))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_guidance_tells_both_of_its_predictions_where_the_step_ends():
    """At scale 0 it is the null prediction alone, at 1 the conditional one: here both are the exact one."""
    x, seen = jnp.linspace(-2, 2, 8)[:, None], {"vec": jnp.zeros((8, 2))}
    want = DATA.flow(FLOW, x, jnp.float32(1), jnp.float32(0))
    for scale in (0.0, 1.0, 3.0):
        guided = guidance.CFG(scale, seen)(told)
        got = samplers.sample(guided, few_steps.meanflow(FLOW), x, times.uniform(FLOW, 2), seen, KEY)
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_weight_makes_samples_alike_and_takes_no_gradient():
    squares = jnp.array([1e-2, 1.0, 100.0])
    np.testing.assert_allclose(few_steps.adaptive(squares, 1.0, 1e-6) * squares, 1, rtol=1e-3)
    np.testing.assert_allclose(few_steps.adaptive(squares, 0.5, 0.0), [10, 1, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(jax.jacobian(lambda s: few_steps.adaptive(s, 1.0, 1e-3))(squares), 0)
