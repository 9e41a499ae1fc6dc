"""Parametrisations: each recovers x0 from its own target, which is the one of its paper."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, scales

PROCESSES = {"ddpm": process.DDPM(), "cosine": process.Cosine(), "edm": process.EDM(), "flow": process.Flow()}
TARGETS = {     # parametrisation -> its target in x0 and eps
    scales.Eps(): lambda a, s, x0, eps: eps,
    scales.V(): lambda a, s, x0, eps: a * eps - s * x0,
    scales.X0(): lambda a, s, x0, eps: x0,
    scales.Velocity(): lambda a, s, x0, eps: eps - x0,
    scales.EDM(0.5): lambda a, s, x0, eps: (x0 - 0.25 / (s**2 + 0.25) * (x0 + s * eps)) * (s**2 + 0.25) ** 0.5 / (0.5 * s),
}
NAMES = ["eps", "v", "x0", "velocity", "edm"]
MEANT = {"v": ("ddpm", "cosine"), "edm": ("edm",), "eps": ("ddpm", "cosine", "edm")}


def draws(p, n=4):
    k1, k2 = jax.random.split(jax.random.key(0))
    t = p.at(jnp.linspace(0.1, 0.9, n))
    x0, eps = jax.random.normal(k1, (n, 2, 2, 3)), jax.random.normal(k2, (n, 2, 2, 3))
    return t, x0, eps, process.noised(p, x0, t, eps)


@pytest.mark.parametrize("scale, name", zip(TARGETS, NAMES, strict=True), ids=NAMES)
def test_targets(scale, name):
    for kind in MEANT.get(name, PROCESSES):
        p = PROCESSES[kind]
        t, x0, eps, xt = draws(p)
        a, s = (process.bcast(v, x0) for v in (p.alpha(t), p.sigma(t)))
        target = scales.target(p, scale, x0, xt, t)
        np.testing.assert_allclose(target, TARGETS[scale](a, s, x0, eps), rtol=1e-3, atol=1e-3)
        c = scale(p, t)
        np.testing.assert_allclose(scales.to_x0(c, xt, target), x0, atol=1e-4)
        np.testing.assert_allclose(scales.to_output(c, xt, scales.to_x0(c, xt, target)), target, rtol=1e-3, atol=1e-3)


def test_a_perfect_network_gives_x0():
    p = PROCESSES["ddpm"]
    t, x0, _, xt = draws(p)
    for scale in TARGETS:
        denoise = scales.denoiser(lambda x, label, cond, scale=scale: scales.target(p, scale, x0, xt, t), p, scale)
        np.testing.assert_allclose(denoise(xt, t, {}, jax.random.key(0)).x0, x0, atol=1e-4)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_has_unit_variance_everywhere(sigma_data):
    p, n = process.EDM(), 20000
    k1, k2 = jax.random.split(jax.random.key(0))
    x0, eps = sigma_data * jax.random.normal(k1, (n,)), jax.random.normal(k2, (n,))
    for level in (0.01, 1.0, 50.0):
        t = jnp.full(n, level)
        xt = process.noised(p, x0, t, eps)
        scale = scales.EDM(sigma_data)
        np.testing.assert_allclose(jnp.std(scale(p, t).in_ * xt), 1, rtol=0.02)
        np.testing.assert_allclose(jnp.std(scales.target(p, scale, x0, xt, t)), 1, rtol=0.02)


def test_what_the_network_sees():
    p, seen = process.EDM(), {}

    def network(x, label, cond):
        seen.update(x=x, label=label)
        return jnp.concatenate([x, 2 * x], axis=-1)

    x = jnp.ones((3, 2, 2, 1))
    found = scales.denoiser(network, p, scales.EDM(0.5), learned_variance=True)(x, jnp.float32(2.0), {}, jax.random.key(0))
    np.testing.assert_allclose(seen["label"], np.full(3, np.log(2) / 4), rtol=1e-6)         # [B] from a scalar
    np.testing.assert_allclose(seen["x"], x / 4.25**0.5, rtol=1e-6)
    np.testing.assert_allclose(found.logvar, 2 * x / 4.25**0.5, rtol=1e-6)


def test_eps_is_refused_where_alpha_ends_at_0():
    for p in (process.Flow(), process.DDPM(zero_snr=True)):
        with pytest.raises(ConfigError, match="predict v, x0 or velocity"):
            scales.Eps()(p, jnp.zeros(()))


def test_the_previous_mean_is_that_of_the_posterior():
    p = process.DDPM()
    t, x0, _, xt = draws(p)
    q, scale = process.posterior(p, t, t - 1), scales.PreviousMean()
    mean = process.bcast(q.x0, x0) * x0 + process.bcast(q.xt, xt) * xt
    np.testing.assert_allclose(scales.target(p, scale, x0, xt, t), mean, atol=1e-5)
    with pytest.raises(ConfigError, match="needs a DDPM process"):
        scale(process.Flow(), t)
