"""How to sample, as text: what a config's `sample` section and the command line share.

    sampler   'ddim', 'ddim,eta=0.5', 'edm,s_churn=40' ...     a function of diffusion/samplers.py or multistep.py
    times     'uniform', 'trailing', 'karras,rho=7' ...        a grid of diffusion/times.py
    schedule  'constant', 'dynamic_cfg,tau2=0.8', 'power_cosine,power=4'
    cads      's=0.1', 's=0.25,tau1=0.6,tau2=0.9,psi=1'        options of guidance.CADS

A name is followed by the options of that function, separated by commas.
"""
from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.diffusion import guidance as g
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Cond, Guidance, Noise, Process, Sampler


def _in(module: str, *names: str) -> dict[str, str]:
    return {name: f"diffusion_jax.diffusion.{module}:{name}" for name in names}


SAMPLERS = _in("samplers", "ancestral", "ddim", "euler", "euler_ancestral", "heun", "edm") | _in(
    "multistep", "plms", "dpm_solver", "dpmpp_2m", "dpmpp_2m_sde")
DETERMINISTIC = ("heun", "plms", "dpmpp_2m")
GRIDS = _in("times", "respace", "leading", "trailing", "linspace", "karras", "log_snr", "uniform")
SCHEDULES = _in("guidance", "dynamic_cfg", "power_cosine")


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """'name,key=value,...' -> (name, {key: value}); without a name ('key=value,...') the name is ''.

    Raises:
      ConfigError: an option that is not key=value, or a value that is not a Python literal.
    """
    name, options = "", {}
    for i, part in enumerate(part.strip() for part in text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            if i:
                raise ConfigError(f"{text!r}: write options as key=value, separated by commas; {part!r} is not")
            name = part
            continue
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return name, options


def named(kind: str, text: str, table: Mapping[str, str]) -> dict[str, Any]:
    """The build spec of 'name,key=value,...' whose name is in `table`.

    Raises:
      ConfigError: an unknown name; the message names the nearest known one.
    """
    name, options = parse(text)
    if name not in table:
        raise unknown(kind, name, table)
    return {"name": table[name], **options}


@dataclass(frozen=True)
class Recipe:
    """Everything about sampling that is not the model.

    Attributes:
      sampler, times, schedule: see the top of this file.
      steps: network calls of a first-order sampler, or an official respacing ('ddim50', '10,15,20', 'fast27') with times
        'respace'.
      guidance: classifier-free guidance scale; 1 is none.
      phi: rescaled phi, in the space of what the network predicts.
      interval: 'low,high': guide only where low < sigma / alpha <= high.
      channels: guide only the first so many channels.
      cads: options of CADS; '' is none.
      clip: clip x0 to [-clip, clip]; 0 is not.
      threshold: quantile of dynamic thresholding; 0 is none.

    Raises:
      ConfigError: a name or option that does not exist, at construction.
    """

    sampler: str = "ddim"
    steps: int | str = 50
    times: str = "uniform"
    guidance: float = 1.0
    schedule: str = "constant"
    phi: float = 0.0
    interval: str = ""
    channels: int = 0
    cads: str = ""
    clip: float = 0.0
    threshold: float = 0.0

    def __post_init__(self):
        named("sampler", self.sampler, SAMPLERS)
        named("times", self.times, GRIDS)
        if self.schedule != "constant":
            named("schedule", self.schedule, {"constant": "", **SCHEDULES})
        if self.interval and len(self._interval) != 2:
            raise ConfigError(f"interval {self.interval!r}: write 'low,high' in units of sigma / alpha")
        if not str(self.steps).isdigit() and parse(self.times)[0] != "respace":
            raise ConfigError(f"steps {self.steps!r} is a respacing: it goes with times 'respace'")
        if parse(self.cads)[0]:
            raise ConfigError(f"cads {self.cads!r}: write options, for example 's=0.1,tau1=0.6,tau2=0.9'")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Recipe:
        """A recipe of a config's section.

        Raises:
          ConfigError: an unknown key; the message names the nearest known one.
        """
        known = [field.name for field in fields(cls)]
        for key in options:
            if key not in known:
                raise unknown("sampling option", key, known)
        return cls(**options)

    @property
    def _interval(self) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in self.interval.split(","))
        except ValueError:
            return ()

    def grid(self, process: Process) -> np.ndarray:
        """The times, [N + 1]."""
        steps = int(self.steps) if str(self.steps).isdigit() else self.steps
        return build(named("times", self.times, GRIDS), process, steps)

    def make_sampler(self, task: Diffusion, noise: Noise) -> Sampler:
        """The sampler; an ancestral one takes the task's own variance unless told otherwise."""
        spec = named("sampler", self.sampler, SAMPLERS)
        name, _ = parse(self.sampler)
        if name == "ancestral":
            spec.setdefault("variance", task.variance)
        return build(spec, task.process, **({} if name in DETERMINISTIC else {"noise": noise}))

    def make_guidance(self, task: Diffusion, scale: Array, null: Cond | None, noise: Noise) -> Guidance:
        """All guidance in its order: on x0, then CADS, then classifier-free guidance where `null` is given."""
        process = task.process
        parts = [g.Threshold(self.threshold)] if self.threshold else []
        parts += [g.Clip(self.clip)] if self.clip else []
        if self.cads:
            spec = {"name": "diffusion_jax.diffusion.guidance:CADS", **parse(self.cads)[1]}
            parts.append(build(spec, process.unit, noise=noise))
        if null is not None:
            mix = g.Mix(self.phi, (process, task.scale), channels=self.channels or None)
            if self.schedule != "constant":
                scale = build(named("schedule", self.schedule, SCHEDULES), scale, process.unit)
            cfg = g.CFG(scale, null, mix)
            parts.append(g.interval(cfg, process, *self._interval) if self.interval else cfg)
        return g.chain(*parts)
