"""Consistency models: a network that says where the probability flow through x_t ends (Song et al. 2023, arXiv 2303.01469).

    f(x_t, t) = skip x_t + out F = the x0 of the flow through x_t,   f(x, clean) = x                   (1)

holds for every scale whose skip is 1 and out 0 at a clean time: velocity, v, eps and EDM's, of every process. With an earlier s
of diffusion/few_steps.py (3), r = sigma / alpha and d its distance (4), the loss is

    d(f(x_t, t) - stop f(x_s, s)) / (r_t - r_s)                                                        (2)

where x_s lies on the same path as x_t, by either of

    training        x_s = alpha_s x0 + sigma_s eps,  the image and noise of x_t                (3)  2310.14189, 2406.14548
    distillation    x_s = a step of a teacher's flow from x_t, guided if wanted                (4)  2303.01469 alg. 2

(3) is right in the limit of small r_t - r_s only, (4) at once but for the error of one step; what f knows at s it hands on to t.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.diffusion import few_steps
from diffusion_jax.diffusion.guidance import CFG
from diffusion_jax.diffusion.process import bcast, carried, noised
from diffusion_jax.diffusion.scales import X0, PreviousMean
from diffusion_jax.diffusion.times import LogNormal, Memoryless
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.tasks.few_steps import FewSteps
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Raw

TEACHER = "teacher"
"""Where (4) finds the teacher's weights among the frozen parameters, and the folder of a run that holds them."""
SOLVERS = {"ddim": 1, "heun": 2}


@dataclass(frozen=True)
class Consistency(FewSteps):
    """Trains and applies a consistency model; sampled by `lcm` in 1, 2 or 4 steps.

    Attributes:
      teacher: the diffusion model to learn from, (4), whose weights are frozen['teacher']; None for (3).
      guidance: of the teacher's classifier-free guidance, which the student then has without asking.
      solver: of (4), 'ddim' or 'heun'.
      every: pictures trained on between two halvings of 1 - r_s / r_t.
      halvings: how often that is halved at most.
      huber: c of the distance over the root of the number of values; 0 for the plain norm.
    and those of `FewSteps`.
    """

    times: Memoryless = LogNormal(-1.1, 2.0)
    teacher: Diffusion | None = None
    guidance: float = 1.0
    solver: str = "heun"
    every: int = 25_000
    halvings: int = 8
    huber: float = few_steps.HUBER

    noun: ClassVar[str] = "a consistency model"

    def check(self) -> None:
        """Raises ConfigError for a scale without (1), and a teacher of other images or conditions."""
        if isinstance(self.scale, X0 | PreviousMean):
            raise ConfigError("a consistency model leaves clean images as they are, which this scale does not: choose EDM, V or "
                              "Velocity")
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        number("task.every", self.every, 1, integer=True)
        number("task.halvings", self.halvings, 1, 30, integer=True)
        number("task.huber", self.huber, 0)
        if self.teacher is not None and self.teacher.shape != self.shape:
            raise ConfigError(f"the teacher makes images of {self.teacher.shape}, task.shape is {self.shape}: choose another")
        if self.teacher is not None and not set(self.teacher.needs) <= set(self.needs):
            raise ConfigError(f"the teacher reads {list(self.teacher.needs)}, this model {list(self.needs)}: give both one cond")

    def check_sampler(self, name: str) -> None:
        """Raises ConfigError for all but `lcm` and samplers of the user's own."""
        if name != "lcm" and ":" not in name:
            raise ConfigError(f"a consistency model says where x_t ends, not what it comes from on average, which {name} reads: "
                              "choose sampler 'lcm', steps 1, 2 or 4")

    def memory(self) -> Memory:
        """How many pictures it has been trained on, as far as that changes anything."""
        return {"pictures": jnp.zeros((), jnp.int32)}

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """(2); logs the distance, and how often 1 - r_s / r_t was halved."""
        trained_on = ((frozen or {}).get("memory") or self.memory())["pictures"]
        halvings = jnp.minimum(1 + trained_on // self.every, self.halvings)
        batch, t, _, eps, k_net = self.base.drawn(frozen, batch, key, train)
        x0 = batch["image"]
        t = jnp.asarray(t, float)
        s = few_steps.earlier(self.process, t, halvings)
        xt = noised(self.process, x0, t, eps)
        xs = noised(self.process, x0, s, eps) if self.teacher is None else self._ahead(frozen, batch, xt, t, s)
        cond = self.embed(params, batch)
        denoise = self.denoiser(params, k_net if train else None)
        clean = self.process.sigma(s) == 0
        # At a clean time some labels are infinite, and (1) says what f is.
        later = denoise(xs, jnp.where(clean, t, s), cond, k_net).x0
        target = jax.lax.stop_gradient(jnp.where(bcast(clean, xs), xs, later))
        distance = few_steps.huber(denoise(xt, t, cond, k_net).x0 - target, self.huber)
        apart = self._noise(t) - self._noise(s)
        loss = jnp.mean(distance / apart)
        metrics = {"distance": jnp.mean(distance), "halvings": halvings.astype(jnp.float32)}
        if train:
            metrics["memory"] = {"pictures": jnp.minimum(trained_on + len(x0), self.every * self.halvings)}
        return loss, metrics

    def _noise(self, t: Array) -> Array:
        return self.process.sigma(t) / self.process.alpha(t)

    def _ahead(self, frozen: Params, batch: Raw, xt: Array, t: Array, s: Array) -> Array:
        """x_s of (4)."""
        teacher, params = self.teacher, (frozen or {}).get(TEACHER)
        if teacher is None or params is None:
            raise ConfigError("this model learns from a teacher: name its folder in config.teacher")
        cond, null = teacher.embed(params, batch), teacher.embed(params, teacher.away(batch))
        denoise = teacher.denoiser(params)
        guided = denoise if self.guidance == 1 else CFG(self.guidance, null)(denoise)

        def x0_of(x: Array, t: Array) -> Array:
            return guided(*carried(self.process, teacher.process, x, t), cond, jax.random.key(0)).x0

        return jax.lax.stop_gradient(few_steps.followed(x0_of, self.process, xt, t, s, SOLVERS[self.solver]))
