"""UniPC and DEIS: a polynomial through what the network has said, integrated over a step exactly.

With half log-SNR l = ln(alpha / sigma) and h = l_s - l_t a step t -> s is, for a model value m that is x0 or eps,

    x0     x_s = (sigma_s / sigma_t) x + alpha_s int e^(l - l_s) m dl        w = alpha_s,  z = -h          (1)  2302.04867 eq. 3
    eps    x_s = (alpha_s / alpha_t) x - sigma_s int e^(l_s - l) m dl        w = sigma_s,  z = h           (2)  2206.00927 eq. 3.4

Both are k x - w z int_0^1 e^((1 - c) z) m dc in c = (l - l_t) / h, the share of the step. Powers of c give the moments

    g_0 = w (e^z - 1),     g_j = w z int_0^1 e^((1 - c) z) c^j dc = j g_(j-1) / z - w                       (3)

and Newton's polynomial m_0 + d_1 c + d_2 c (c - c_1) + d_3 c (c - c_1) (c - c_2) through values at the shares 0, c_1, c_2 < 0 of
past times gives

    x_s = k x - g_0 m_0 - n_1 d_1 - n_2 d_2 - n_3 d_3                                                       (4)
    n_1 = g_1,   n_2 = g_2 - c_1 g_1,   n_3 = g_3 - (c_1 + c_2) g_2 + c_1 c_2 g_1

    UniP-p     (4) with p values; p = 2 has n_1 = B / 2 with B = g_0 (bh2) or w z (bh1)                     (5)  2302.04867
    UniC-p     one value more, m_s itself at c = 1; p = 1 has n_1 = B / 2
    DEIS-p     (4) for eps with p values: tAB-DEIS in log rho, rho = sigma / alpha                          (6)  2204.13902

The published weights of UniPC solve equations with B on both sides, so that it cancels wherever it is not in (5). UniC corrects
the state that the step before has left, with what the network says of that state at the beginning of the next step: it costs no
call, and its order is p + 1. As in multistep.py a step of length zero leaves no trace, and one to a clean s is of first order.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.diffusion.multistep import Past, allowed_order, no_past
from diffusion_jax.diffusion.process import bcast, ratio, refuse_pure_noise
from diffusion_jax.diffusion.samplers import resolve
from diffusion_jax.types import Array, Process, Sampler

LONGEST = 50.0
"""Stands for h of a step from pure noise or to a clean image, which is infinite; float32 does not tell e^-50 from 0."""
SERIES = 12
"""Terms of (3) as a power series, for steps of |z| < 1: there the recurrence loses its digits."""


class _State(NamedTuple):
    """The past, and what UniC adds to the state that the last step left: `owed` - `gain` (m_s - m_0)."""

    past: Past
    owed: Array
    gain: Array


class _Terms(NamedTuple):
    """A step: its length h and order, k and g_0 of (4), B, and (4)'s n [3] and the value at c = 1 of Newton's factors [3]."""

    order: Array
    keep: Array
    g0: Array
    b: Array
    n: Array
    one: Array


def unipc(
    process: Process, order: int = 2, form: str = "x0", variant: str = "bh2", uncorrected: int = 0, lower_order_final: bool = True
) -> Sampler:
    """UniPC, (5): a predictor of order p and a corrector that makes it p + 1, one network call a step.

    Args:
      process: the process.
      order: p, 1 to 3; the authors advise 2 with guidance and 3 without.
      form: 'x0' (1) or 'eps' (2).
      variant: 'bh2', or 'bh1' for few steps without guidance.
      uncorrected: after how many steps the corrector begins: it may harm the first ones at a large guidance scale. With as many
        as there are steps it is UniP alone.
      lower_order_final: end with the orders 2 and 1, however many steps there are.

    Raises:
      ConfigError: an option out of range, or a form or variant without a limit where alpha(t_max) is 0.
    """
    for kind, got, known in (("form", form, ("x0", "eps")), ("variant", variant, ("bh1", "bh2"))):
        if got not in known:
            raise unknown(kind, got, known)
    _check("unipc", order)
    if form == "eps":
        refuse_pure_noise(process, "the eps form of unipc", "form x0")
    if variant == "bh1":
        refuse_pure_noise(process, "the variant bh1 of unipc", "variant bh2")

    def init(x: Array, steps: int) -> _State:
        return _State(no_past(x, steps), jnp.zeros_like(x), jnp.zeros((), x.dtype))

    def step(denoise, x, state: _State, t, s, key):
        past = state.past
        x0, eps = resolve(process, denoise(x, t, key), x, t)
        m = x0 if form == "x0" else eps
        late = past.known > uncorrected
        corrected = x + jnp.where(late, state.owed - state.gain * (m - past.m1), 0)
        h, still = _length(process, t, s)
        terms = _terms(process, past, order, form, variant == "bh1", t, s, h, lower_order_final)
        d1, d2 = _divided(past, m, h, terms.order)
        predicted = bcast(terms.n[0], x) * d1 + bcast(terms.n[1], x) * d2
        half = bcast(terms.b / 2, x) * d1
        predicted = jnp.where(terms.order == 2, half, predicted)
        moved = bcast(terms.keep, x) * corrected - bcast(terms.g0, x) * m - predicted
        gain = jnp.where(terms.order == 1, terms.b / 2, (terms.n / terms.one)[terms.order - 1]).astype(x.dtype)
        known = bcast(terms.n[0] - gain, x) * d1 + bcast(terms.n[1] - gain * terms.one[1], x) * d2
        after = _State(past.with_value(m, h), predicted - known, gain)
        x, state = jax.tree.map(lambda before, after: jnp.where(still, before, after), (x, state), (moved, after))
        return x, state._replace(past=state.past._replace(done=past.done + 1))

    return Sampler(init, step)


def deis(process: Process, order: int = 3, lower_order_final: bool = True) -> Sampler:
    """DEIS, (6): tAB-DEIS of order 1 (which is DDIM) to 3 in log rho, one network call a step.

    Args:
      process: the process.
      order: how many values the polynomial goes through.
      lower_order_final: end runs of fewer than 15 steps with order 2, then 1.

    Raises:
      ConfigError: another order, or alpha(t_max) = 0.
    """
    _check("deis", order)
    refuse_pure_noise(process, "deis", "unipc")

    def init(x: Array, steps: int) -> Past:
        return no_past(x, steps)

    def step(denoise, x, past: Past, t, s, key):
        _, eps = resolve(process, denoise(x, t, key), x, t)
        h, still = _length(process, t, s)
        terms = _terms(process, past, order, "eps", False, t, s, h, lower_order_final & (past.steps < 15))
        d1, d2 = _divided(past, eps, h, terms.order)
        moved = bcast(terms.keep, x) * x - bcast(terms.g0, x) * eps - bcast(terms.n[0], x) * d1 - bcast(terms.n[1], x) * d2
        after = past.with_value(eps, h)
        x, past = jax.tree.map(lambda before, after: jnp.where(still, before, after), (x, past), (moved, after))
        return x, past._replace(done=past.done + 1)

    return Sampler(init, step)


def _check(name: str, order: int) -> None:
    if order not in (1, 2, 3):
        raise ConfigError(f"{name} has the orders 1, 2 and 3, got {order}")


def _length(process: Process, t: Array, s: Array) -> tuple[Array, Array]:
    """(h of a step, whether it is one of length zero, whose h is then 1)."""
    q = ratio(process, t, s)
    still = q == 1
    return jnp.where(still, 1, -jnp.log(jnp.maximum(q, jnp.exp(-LONGEST)))), still


def _terms(process: Process, past: Past, order: int, form: str, bh1: bool, t: Array, s: Array, h: Array, lower: Array) -> _Terms:
    """(3) to (5) of a step."""
    a_s, s_s = process.alpha(s), process.sigma(s)
    if form == "x0":
        w, z, keep = a_s, -h, s_s / process.sigma(t)
        g0 = a_s * jnp.expm1(-h)
    else:
        w, z, keep = s_s, h, a_s / process.alpha(t)
        g0 = a_s * process.sigma(t) / process.alpha(t) - s_s                # w e^z of a clean s is not 0
    order = allowed_order(past, order, h)
    order = jnp.where(lower, jnp.minimum(order, past.steps - past.done), order)
    order = jnp.where(s_s == 0, 1, order)
    c1, c2 = -past.h1 / h, -(past.h1 + past.h2) / h
    g1, g2, g3 = _moments(w, z, g0)
    n = jnp.stack([g1, g2 - c1 * g1, g3 - (c1 + c2) * g2 + c1 * c2 * g1])
    one = jnp.stack([jnp.ones_like(c1), 1 - c1, (1 - c1) * (1 - c2)])
    return _Terms(order, keep, g0, w * z if bh1 else g0, n, one)


def _moments(w: Array, z: Array, g0: Array) -> tuple[Array, Array, Array]:
    """g_1, g_2 and g_3 of (3)."""
    small = jnp.abs(z) < 1
    short, long = jnp.where(small, z, 1), jnp.where(small, 1, z)
    out, g = [], g0
    for j in (1, 2, 3):
        g = j * g / long - w
        term, series = short / (j + 1), 0                                   # z^(i+1) j! / (j + 1 + i)!
        for i in range(SERIES):
            series = series + term
            term = term * short / (j + 2 + i)
        out.append(jnp.where(small, w * series, g))
    return out[0], out[1], out[2]


def _divided(past: Past, m: Array, h: Array, order: Array) -> tuple[Array, Array]:
    """d_1 and d_2 of (4); 0 where the order that is allowed does not read them."""
    c1, c2 = -past.h1 / h, -(past.h1 + past.h2) / h
    d1 = bcast(jnp.where(order > 1, 1 / c1, 0), m) * (past.m1 - m)
    between = bcast(jnp.where(order > 2, h / past.h2, 0), m) * (past.m1 - past.m2)
    return d1, bcast(jnp.where(order > 2, 1 / c2, 0), m) * (between - d1)
