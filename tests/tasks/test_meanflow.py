"""Mean flows of Gaussian data, whose mean velocity is known: nothing is left to learn there; guidance in training; refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, scales
from diffusion_jax.diffusion.few_steps import meanflow
from diffusion_jax.diffusion.samplers import sample
from diffusion_jax.diffusion.times import Uniform, uniform
from diffusion_jax.models.cond import Label, Nothing
from diffusion_jax.models.dit import DiT
from diffusion_jax.tasks.meanflow import MeanFlow
from diffusion_jax.types import UNTIL
from tasks.exact import SHAPE, ExactMean, batch, end

KEY, FLOW = jax.random.key(0), process.Flow()


def task(**changes):
    options = {"model": ExactMean(FLOW), "cond": Nothing(), "process": FLOW, "scale": scales.Velocity(), "shape": SHAPE}
    return MeanFlow(**(options | {"power": 0.0, "ratio": 1.0} | changes))


def weights(error=0.0):
    return {"model": {"error": jnp.float32(error)}, "cond": {}}


@pytest.mark.parametrize("ratio", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_the_mean_velocity_is_where_the_loss_is_least(ratio):
    """Its gradient is zero there, as far as the mean over so many samples is."""
    t = task(ratio=ratio)

    def loss(error):
        return t.loss({"model": {"error": error}, "cond": {}}, None, batch(2**16), KEY, True)[0]

    slope = jax.jit(jax.grad(loss))
    low, here, high = (float(slope(jnp.float32(error))) for error in (-0.2, 0.0, 0.2))
    assert low < 0 < high and abs(here) < 0.05 * min(-low, high)


def test_its_derivative_is_the_total_one_along_the_flow():
    """Of a network F = z t (t - s): dF = t (t - s) v + z (2 t - s), by hand at known times and noise."""
    class Product(nn.Module):
        interval: bool = True

        @nn.compact
        def __call__(self, x, noise, cond):
            t, s = (label.reshape(-1, 1, 1, 1) / 1000 for label in (noise, cond[UNTIL]))
            return x * t * (t - s)

    t = task(model=Product(), cond=Nothing())
    raw = batch(512)
    drawn = t.base.drawn(None, raw, KEY, True)
    u, w = (np.asarray(a).reshape(-1, 1, 1, 1) for a in t._ends(drawn.t, jax.random.fold_in(KEY, 6)))
    x0, eps = np.asarray(raw["image"]), np.asarray(drawn.eps)
    z, v = (1 - u) * x0 + u * eps, eps - x0
    slope = u * (u - w) * v + z * (2 * u - w)
    wrong = z * u * (u - w) - (v - (u - w) * slope)
    loss, metrics = t.loss({"model": {}, "cond": {}}, None, raw, KEY, True)
    np.testing.assert_allclose(loss, np.mean(np.sum(wrong**2, axis=(1, 2, 3))), rtol=1e-4)
    np.testing.assert_allclose(metrics["mse"], np.mean(wrong**2), rtol=1e-4)
    assert (w < u).all()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_its_samples_are_the_ends_of_the_flow(steps):
    start = jax.random.normal(KEY, (8, *SHAPE))
    x = sample(task().denoiser(weights()), meanflow(FLOW), start, uniform(FLOW, steps), {}, KEY)
    np.testing.assert_allclose(x, end(FLOW, start, jnp.float32(1)), atol=2e-5)


def test_the_share_of_two_times_and_their_order():
    t = task(ratio=0.25, times=Uniform())
    u, w = t._ends(jnp.full(4000, 0.5), KEY)
    assert abs(float(jnp.mean(u != w)) - 0.25) < 0.03
    assert bool(jnp.all(w <= u)) and bool(jnp.all(jnp.maximum(u, 0.5) == u))


class Told(nn.Module):
    """A velocity that the condition says."""

    interval: bool = True

    @nn.compact
    def __call__(self, x, noise, cond):
        zero = self.param("zero", nn.initializers.zeros, ())
        return zero * x + cond["vec"][:, :1, None, None]


def test_guidance_is_part_of_what_is_learned_where_there_is_a_condition():
    """Images of 0, so that v = eps: F = b for label 0 and c for the null; (4) by hand."""
    b, c, omega, kappa = 0.5, 0.2, 1.5, 0.4
    raw = {"image": jnp.zeros((4096, *SHAPE)), "label": jnp.zeros(4096, int)}
    for rate in (0.0, 1.0):
        t = task(model=Told(), cond=Label(1, 1), ratio=0.0, omega=omega, kappa=kappa, drop=FrozenDict(label=rate))
        fresh = t.init(KEY, raw)
        params = {**fresh, "cond": jax.tree.map(lambda x: jnp.array([[b], [c]]), fresh["cond"])}
        eps = t.base.drawn(None, raw, KEY, True).eps
        goal = eps if rate else omega * eps + kappa * b + (1 - omega - kappa) * c
        _, metrics = t.loss(params, None, raw, KEY, True)
        np.testing.assert_allclose(metrics["mse"], jnp.mean(((c if rate else b) - goal) ** 2), rtol=1e-5)


def network():
    """(a task whose network is a DiT, parameters of which none is zero)."""
    t = task(model=DiT(patch=2, width=8, depth=1, heads=2, channels=1, learn_sigma=False, interval=True))
    params = jax.jit(t.init)(KEY, batch(2))
    return t, jax.tree.map(lambda x: x + 0.1, params)


def test_the_network_sees_where_the_step_ends():
    t, params = network()
    x, noise = batch(2)["image"], jnp.full(2, 500.0)
    denoise = jax.jit(lambda cond: t.denoiser(params)(x, jnp.float32(0.5), cond, KEY).x0)
    far, near, same = (denoise(cond) for cond in ({UNTIL: jnp.zeros(2)}, {UNTIL: noise}, {}))
    np.testing.assert_allclose(near, same, atol=1e-6)
    assert float(jnp.abs(far - near).max()) > 1e-4


@pytest.mark.slow
def test_a_network_trains_in_all_its_parts():
    t, params = network()
    grads = jax.jit(jax.grad(lambda p: t.loss(p, None, batch(2), KEY, True)[0]))(params)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads["model"]["interval"]))


@pytest.mark.parametrize("changes, says", [
    (dict(process=process.EDM()), "process Flow and scale Velocity"),
    (dict(scale=scales.V()), "process Flow and scale Velocity"),
    (dict(model=DiT(patch=2, width=8, depth=1, heads=2)), "model.interval=True"),
    (dict(ratio=1.5), "task.ratio"),
    (dict(c=0.0), "task.c is above 0"),
    (dict(kappa=1.0), "below 1"),
    (dict(omega=2.0), "give task.drop"),
])
def test_refusals(changes, says):
    with pytest.raises(ConfigError, match=says):
        task(**changes)


def test_it_is_sampled_by_all_but_lcm():
    for name in ("meanflow", "ddim", "heun", "mypkg.samplers:mine"):
        task().check_sampler(name)
    with pytest.raises(ConfigError, match="choose sampler 'meanflow'"):
        task().check_sampler("lcm")
