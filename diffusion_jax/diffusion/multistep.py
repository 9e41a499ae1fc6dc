"""Samplers that remember: linear multistep methods in eps or in half log-SNR.

    PLMS            DDIM with an Adams-Bashforth combination of the last four eps                 (1)  2202.09778
    DPM-Solver++    x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^-h) D0 + c1 D1 + c2 D2           (2)  2211.01095

with h = ln(alpha_s / sigma_s) - ln(alpha_t / sigma_t) and D0, D1, D2 the value, slope and curvature of the past x0 against it.
The form of DPM-Solver (2206.00927) is (2) with eps for x0, alpha and sigma exchanged and h negated.

The published third-order formula, which is kept here, takes D2 as half of what it approximates, h^2 times the second derivative.
So it converges with the second order, at half the error of the second-order formula; with the whole of it the order would be 3.

A step of length zero is the identity and leaves no trace in the history; across a step that is far shorter than the next, the
slope of what a network returns is its rounding error, so that the next is of lower order.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.diffusion.process import bcast, levels, ratio, refuse_pure_noise
from diffusion_jax.diffusion.samplers import resolve, resting
from diffusion_jax.types import Array, Noise, Process, Sampler, State

STRETCH = 100.0
"""How many times as long as the step before a step may be, in half log-SNR, and still take a slope from it."""


def plms(process: Process) -> Sampler:
    """Pseudo linear multistep, (1): four past eps; its first step asks the network twice. Needs at least two steps."""
    refuse_pure_noise(process, "plms", "dpmpp_2m")
    table = jnp.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24

    def init(x: Array, steps: int) -> State:
        if steps < 2:
            raise ConfigError("plms needs at least 2 steps: for one choose ddim, which it begins with")
        return jnp.zeros((3, *x.shape), x.dtype), jnp.zeros((), jnp.int32)

    @resting
    def step(denoise, x, state, t, s, key):
        past, count = state
        (alpha, sigma), (alpha_s, sigma_s) = levels(process, t, x), levels(process, s, x)
        _, eps = resolve(process, denoise(x, t, key), x, t)
        history = jnp.concatenate([eps[None], past])                            # [4, B, ...], newest first

        def move(eps):
            return alpha_s * (x - sigma * eps) / alpha + sigma_s * eps

        def improved_euler():
            ahead = move(eps)
            return (eps + resolve(process, denoise(ahead, s, key), ahead, s)[1]) / 2

        weights = table[jnp.minimum(count, 3)].astype(x.dtype)
        # A clean image says nothing of eps: a run of a single step, or what an edit leaves of one, is DDIM's.
        twice = (count == 0) & (sigma_s > 0)
        combined = jax.lax.cond(twice, improved_euler, lambda: jnp.tensordot(weights, history, 1))
        return move(combined), (history[:3], count + 1)

    return Sampler(init, step)


class Past(NamedTuple):
    """The last two model values and half log-SNR steps, the number of steps behind them, of steps done and of all."""

    m1: Array
    m2: Array
    h1: Array
    h2: Array
    known: Array
    done: Array
    steps: Array

    def with_value(self, m: Array, h: Array) -> Past:
        """After a step of length h at whose beginning the model value was m."""
        return self._replace(m1=m, m2=self.m1, h1=h, h2=self.h1, known=self.known + 1)


def no_past(x: Array, steps: int) -> Past:
    """Before the first of `steps` steps."""
    zero, one, none = jnp.zeros_like(x), jnp.ones((), float), jnp.zeros((), jnp.int32)
    return Past(zero, zero, one, one, none, none, jnp.int32(steps))


def allowed_order(past: Past, order: int, h: Array) -> Array:
    """The order that a step of length h may have: of as many values as there are, none of them a slope that is drawn out."""
    allowed = jnp.minimum(order, past.known + 1)
    allowed = jnp.where(past.h1 > STRETCH * past.h2, jnp.minimum(allowed, 2), allowed)
    return jnp.where(h > STRETCH * past.h1, 1, allowed)


def dpm_solver(
    process: Process, order: int = 2, form: str = "x0", sde: bool = False, corrector: str = "midpoint",
    lower_order_final: bool = True, euler_at_final: bool = False, noise: Noise = jax.random.normal,
) -> Sampler:
    """DPM-Solver's multistep family, (2). A step to a clean s is always of first order.

    Args:
      process: the process.
      order: 1, 2 or 3.
      form: 'x0' (DPM-Solver++, 2211.01095) or 'eps' (DPM-Solver, 2206.00927).
      sde: the stochastic form (2211.01095 app.).
      corrector: 'midpoint' or 'heun', the second-order formula.
      lower_order_final: end runs of fewer than 15 steps with order 2, then 1, as the authors advise.
      euler_at_final: make the last step one of first order, however many there are.
      noise: the source of noise of the stochastic form.
    """
    for kind, got, known in (("form", form, ("x0", "eps")), ("corrector", corrector, ("midpoint", "heun"))):
        if got not in known:
            raise unknown(kind, got, known)
    if order not in (1, 2, 3):
        raise ConfigError(f"dpm_solver has the orders 1, 2 and 3, got {order}")
    if form == "eps":
        refuse_pure_noise(process, "the eps form of dpm_solver", "form x0")

    def step(denoise, x, past: Past, t, s, key):
        k_denoise, k_noise = jax.random.split(key)
        x0, eps = resolve(process, denoise(x, t, k_denoise), x, t)
        m0 = x0 if form == "x0" else eps
        q = ratio(process, t, s)
        still = q == 1                                                          # of length zero, as far as float32 tells
        h = jnp.where(still, 1, -jnp.log(q))
        allowed, left = allowed_order(past, order, h), past.steps - past.done
        allowed = jnp.where(lower_order_final & (past.steps < 15), jnp.minimum(allowed, left), allowed)
        allowed = jnp.where((process.sigma(s) == 0) | (euler_at_final & (left == 1)), 1, allowed)
        factors = _coefficients(process, form, sde, corrector, t, s, q, h, allowed)
        keep, c0, c1, c2 = (bcast(factor, x) for factor in factors)
        d1, d2 = _differences(past, m0, h, allowed)
        moved = keep * x + c0 * m0 + c1 * d1 + c2 * d2
        if sde:
            level = process.sigma(s) if form == "x0" else process.alpha(s) / process.alpha(t) * process.sigma(t)
            spread = bcast(level * jnp.sqrt(1 - q**2), x)
            noisy = moved + spread * noise(k_noise, x.shape, x.dtype)
            moved = jnp.where(process.sigma(s) == 0, bcast(process.alpha(s), x) * x0, noisy)     # the eps form's does not vanish
        after = past.with_value(m0, h)
        x, past = jax.tree.map(lambda before, after: jnp.where(still, before, after), (x, past), (moved, after))
        return x, past._replace(done=past.done + 1)

    return Sampler(no_past, step)


def _differences(past: Past, m0: Array, h: Array, allowed: Array) -> tuple[Array, Array]:
    """D1 and D2 of (2), over a step of h; 0 where the order that is allowed does not read them."""
    third, ratio = allowed > 2, past.h1 / (past.h1 + past.h2)
    d10 = bcast(jnp.where(allowed > 1, h / past.h1, 0), m0) * (m0 - past.m1)
    d11 = bcast(jnp.where(third, h / past.h2, 0), m0) * (past.m1 - past.m2)
    d1 = d10 + bcast(jnp.where(third, ratio, 0), m0) * (d10 - d11)
    return d1, bcast(jnp.where(third, h / (past.h1 + past.h2), 0), m0) * (d10 - d11)


def _coefficients(process, form, sde, corrector, t, s, q, h, allowed):
    """Factors of x, D0, D1, D2 in (2). The eps form is the x0 form with alpha and sigma exchanged and h negated."""
    a_s, s_s = process.alpha(s), process.sigma(s)
    if form == "x0":
        w, k, twice = a_s, (2 * h if sde else h), 1
        wq = a_s * (q**2 if sde else q)                                        # w exp(-k)
        keep = s_s / process.sigma(t) * (q if sde else 1)
    else:
        w, k, twice = s_s, -h, (2 if sde else 1)
        wq = a_s * process.sigma(t) / process.alpha(t)
        keep = a_s / process.alpha(t)
    c0 = w - wq
    c1_exact = (wq - w) / k + w
    c1_second = c0 / 2 if corrector == "midpoint" else c1_exact
    c1 = jnp.where(allowed > 2, c1_exact, jnp.where(allowed > 1, c1_second, 0))
    c2 = jnp.where(allowed > 2, w / 2 - (wq - w + w * k) / k**2, 0)
    return keep, twice * c0, twice * c1, twice * c2


def dpmpp_2m(process: Process) -> Sampler:
    """DPM-Solver++ (2M): second order, one network call a step."""
    return dpm_solver(process)


def dpmpp_2m_sde(process: Process, noise: Noise = jax.random.normal) -> Sampler:
    """The stochastic form of DPM-Solver++ (2M)."""
    return dpm_solver(process, sde=True, noise=noise)
