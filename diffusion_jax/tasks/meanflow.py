"""Mean flows: a network that knows the mean velocity between two times (Geng et al. 2025, arXiv 2505.13447).

Of a flow z_t = (1 - u) x0 + u eps, u = sigma(t), with v = eps - x0, the mean velocity from u down to w

    m(z, w, u) = 1 / (u - w) int_w^u v(z_a, a) da,   m(z, u, u) = v                                          (1)  eq. 3

obeys, along the flow,

    m = v - (u - w) dm/du,   dm/du = v . grad_z m + d_u m                                                    (2)  eq. 6, 8

so that the network F is trained towards the right side of (2), of which no gradient is taken:

    |F(z, w, u) - stop(v - (u - w) dF/du)|^2 / stop(|.|^2 + c)^p                                             (3)  eq. 9, sec. 4.3

with dF/du by one forward derivative (`jax.jvp`). Classifier-free guidance may be made part of what is learned, for which v is
replaced by

    omega v + kappa F(z, u, u | y) + (1 - omega - kappa) F(z, u, u)                                          (4)  eq. 19, app. B.1

whose effective scale is omega / (1 - kappa); without a condition, v stays. With w = u for all, (3) is a flow's own loss.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, number
from diffusion_jax.diffusion import few_steps
from diffusion_jax.diffusion.process import Flow, bcast
from diffusion_jax.diffusion.scales import Velocity
from diffusion_jax.tasks.few_steps import FewSteps
from diffusion_jax.types import UNTIL, Array, Cond, Key, Memory, Metrics, Params, Raw

PLAIN = Flow()
"""Whose noise label of u is that of every flow at sigma(t) = u."""


@dataclass(frozen=True)
class MeanFlow(FewSteps):
    """Trains and applies a mean flow; sampled by `meanflow` in 1, 2 or 4 steps, or as a flow by any other sampler.

    Attributes:
      ratio: the share of samples whose two times differ.
      power, c: p and c of (3).
      omega, kappa: of (4); 1 and 0 are no guidance.
    and those of `FewSteps`.
    """

    ratio: float = 0.25
    power: float = 1.0
    c: float = 1e-3
    omega: float = 1.0
    kappa: float = 0.0

    noun: ClassVar[str] = "a mean flow"

    def check(self) -> None:
        """Raises ConfigError for what is no flow, a network that sees one time only, and numbers without meaning."""
        if not isinstance(self.process, Flow) or not isinstance(self.scale, Velocity):
            raise ConfigError("a mean flow is one of velocities: set process Flow and scale Velocity")
        if not getattr(self.model, "interval", False):
            raise ConfigError("a mean flow's network sees where a step ends too: set model.interval=True (models.dit:DiT)")
        number("task.ratio", self.ratio, 0, 1)
        number("task.power", self.power, 0)
        if not number("task.c", self.c, 0) > 0:
            raise ConfigError("task.c is above 0: errors of 0 would be weighed with infinity")
        if not 0 <= number("task.kappa", self.kappa) < 1:
            raise ConfigError(f"task.kappa is 0 or more and below 1, of which nothing of v is left: got {self.kappa}")
        if (self.omega != 1 or self.kappa) and not self.drop:
            raise ConfigError("guidance (task.omega, task.kappa) leads away from dropped conditions: give task.drop")

    def check_sampler(self, name: str) -> None:
        """Refuses `lcm`, which takes the denoiser's x0, a mean over all images, for the end of the flow."""
        if name == "lcm":
            raise ConfigError("lcm reads where the flow ends at once, which a mean flow tells of a whole step: choose sampler "
                              "'meanflow'")

    def memory(self) -> Memory:
        """Nothing."""
        return {}

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """(3); logs its error without the weight, and the root mean square of dF/du."""
        batch, t, _, eps, k_net = self.base.drawn(frozen, batch, key, train)
        u, w = self._ends(t, jax.random.fold_in(key, 6))
        x0, v = batch["image"], eps - batch["image"]
        z = x0 + bcast(u, x0) * v
        cond = self.embed(params, batch)
        rngs = {"dropout": k_net} if train else {}

        def velocity(z: Array, w: Array, u: Array, cond: Cond) -> Array:
            label, until = (PLAIN.label(a) for a in (u, w))
            return self.model.apply({"params": params["model"]}, z, label, {**cond, UNTIL: until}, rngs=rngs)

        if self.omega != 1 or self.kappa:
            null = self.embed(params, self.away(batch))
            both = [jax.lax.stop_gradient(velocity(z, u, u, seen)) for seen in (cond, null)]
            mixed = self.omega * v + self.kappa * both[0] + (1 - self.omega - self.kappa) * both[1]
            v = jnp.where(bcast(_differ(cond, null), v), mixed, v)
        mean, slope = jax.jvp(lambda z, u: velocity(z, w, u, cond), (z, u), (v, jnp.ones_like(u)))
        wrong = mean - jax.lax.stop_gradient(v - bcast(u - w, v) * slope)
        squares = jnp.sum(wrong**2, axis=range(1, wrong.ndim))
        loss = jnp.mean(few_steps.adaptive(squares, self.power, self.c) * squares)
        return loss, {"mse": jnp.mean(wrong**2), "slope": jnp.mean(slope**2) ** 0.5}

    def _ends(self, t: Array, key: Key) -> tuple[Array, Array]:
        """(u, w) of (1), [B] each: of two drawn times the later and the earlier one, or the later one twice."""
        k_other, k_same = jax.random.split(key)
        both = self.process.sigma(jnp.stack([t, self.times(self.process, k_other, len(t))]))
        u = jnp.max(both, axis=0)
        differ = jax.random.uniform(k_same, u.shape) < self.ratio
        return u, jnp.where(differ, jnp.min(both, axis=0), u)


def _differ(cond: Cond, null: Cond) -> Array:
    """Which samples have a condition, [B]."""
    differences = [jnp.any((cond[name] != null[name]).reshape(len(cond[name]), -1), axis=1) for name in cond]
    return functools.reduce(jnp.logical_or, differences)
