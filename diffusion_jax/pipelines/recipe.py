"""How to sample, as text: what a config's `sample` section and the command line share.

    sampler   'ddim', 'ddim,eta=0.5', 'edm,s_churn=40' ...     a function of diffusion/samplers.py or multistep.py
    times     'uniform', 'trailing', 'karras,rho=7' ...        a grid of diffusion/times.py
    schedule  'constant', 'dynamic_cfg,tau2=0.8', 'power_cosine,power=4'
    cads      's=0.1', 's=0.25,tau1=0.6,tau2=0.9,psi=1'        options of guidance.CADS

A name is followed by the options of that function, separated by commas.
"""
from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, symbol, unknown
from diffusion_jax.diffusion import guidance as g
from diffusion_jax.diffusion.samplers import sample
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Cond, Denoiser, Guidance, Key, Noise, Prediction, Process, Sampler


def constant(w: Array, unit: g.Schedule) -> g.Schedule:
    """The guidance scale w at all times."""
    return lambda t: w


def _in(module: str, *names: str) -> dict[str, str]:
    return {name: f"diffusion_jax.diffusion.{module}:{name}" for name in names}


SAMPLERS = _in("samplers", "ancestral", "ddim", "euler", "euler_ancestral", "heun", "edm") | _in(
    "multistep", "plms", "dpm_solver", "dpmpp_2m", "dpmpp_2m_sde")
DETERMINISTIC = ("heun", "plms", "dpmpp_2m")
GRIDS = _in("times", "respace", "leading", "trailing", "linspace", "karras", "log_snr", "uniform")
SCHEDULES = {"constant": f"{__name__}:constant"} | _in("guidance", "dynamic_cfg", "power_cosine")
CADS = "diffusion_jax.diffusion.guidance:CADS"


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
      ConfigError: an unknown name or option (the message names the nearest known one), or a value of the wrong kind.
    """
    name, options = parse(text)
    if name not in table:
        raise unknown(kind, name, table)
    return _spec(table[name], options, text)


def _spec(name: str, options: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The build spec of `name`; `text` is what errors quote. What defaults to a word takes a word, the rest takes a number."""
    kinds = (bool, int, float, str, type(None))
    known = {p.name: p.default for p in inspect.signature(symbol(name)).parameters.values() if isinstance(p.default, kinds)}
    for key, value in options.items():
        if key not in known:
            what = name.partition(":")[2]
            raise unknown(f"option of {what}", key, known) if known else ConfigError(f"{text!r}: {what} takes no options")
        if not isinstance(value, str if isinstance(known[key], str) else (bool, int, float)):
            raise ConfigError(f"{text!r}: {key} takes a {'word' if isinstance(known[key], str) else 'number'}, not {value!r}")
    return {"name": name, **options}


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
      classifier_scale: that of a classifier's gradient, where there is a classifier.
      augment: the level of conditioning augmentation that an upsampler samples at.
      temperature: factor of the noise that sampling starts from; GLIDE's upsampler has 0.997.
      levels: of the pixels of the images that an upsampler is given: 256, as in a file, or 0 for those that were made.

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
    classifier_scale: float = 1.0
    augment: float = 0.0
    temperature: float = 1.0
    levels: int = 256

    def __post_init__(self):
        named("sampler", self.sampler, SAMPLERS)
        named("times", self.times, GRIDS)
        named("schedule", self.schedule, SCHEDULES)
        if self.interval and not (len(self._interval) == 2 and self._interval[0] < self._interval[1]):
            raise ConfigError(f"interval {self.interval!r}: write 'low,high' in units of sigma / alpha")
        if not str(self.steps).isdigit() and parse(self.times)[0] != "respace":
            raise ConfigError(f"steps {self.steps!r} is a respacing: it goes with times 'respace'")
        if str(self.steps) == "0":
            raise ConfigError("steps 0 makes no images: at least 1")
        if self.cads and parse(self.cads)[0]:
            raise ConfigError(f"cads {self.cads!r}: write options, for example 's=0.1,tau1=0.6,tau2=0.9'")
        _spec(CADS, parse(self.cads)[1], self.cads)
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold} is a quantile, 0 ... 1")
        if self.clip < 0 or self.channels < 0:
            raise ConfigError(f"clip and channels are 0 (off) or positive, got {self.clip} and {self.channels}")
        if self.levels not in (0, 256):
            raise ConfigError(f"levels {self.levels} is 256, as in a file, or 0")
        if not 0 <= self.augment <= 1:
            raise ConfigError(f"augment {self.augment} is a level of noise, 0 ... 1")

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

    def make_guidance(
        self, task: Diffusion, scale: Array, null: Cond | None, noise: Noise, classifier: Guidance | None = None,
        weak: Denoiser | None = None,
    ) -> Guidance:
        """All guidance in its order: on x0 (clips what was thresholded), then a classifier's, then CADS, then classifier-free
        guidance where `null` is given, or autoguidance where `weak` is.

        The ancestral sampler shifts its mean by the classifier's gradient; for the others it is folded into x0.
        """
        process = task.process
        parts = [g.Clip(self.clip)] if self.clip else []
        parts += [g.Threshold(self.threshold)] if self.threshold else []
        if classifier is not None:
            parts += [classifier] if parse(self.sampler)[0] == "ancestral" else [g.Fold(process), classifier]
        if self.cads:
            parts.append(build(_spec(CADS, parse(self.cads)[1], self.cads), process.unit, noise=noise))
        if null is not None or weak is not None:
            mix = g.Mix(self.phi, (process, task.scale), channels=self.channels or None)
            w = build(named("schedule", self.schedule, SCHEDULES), scale, process.unit)
            away = g.Autoguidance(w, weak, mix) if weak is not None else g.CFG(w, null, mix)
            parts.append(g.interval(away, process, *self._interval) if self.interval else away)
        return g.chain(*parts)

    def check(self, task: Diffusion, weak: bool = False) -> None:
        """Goes through the motions for `task`, without its network and without computing anything.

        Args:
          task: what to sample from.
          weak: whether there is a weak model to guide away from.

        Raises:
          ConfigError: times, sampler or guidance that do not go with the task's process, parametrisation or conditions.
        """
        if self.guidance != 1 and not task.cond.droppable and not weak:
            raise ConfigError("this model has no condition that could guide it: leave guidance at 1, or give a --weak model")
        if self.cads and not _embeds(task):
            raise ConfigError("CADS perturbs an embedded label or text, which this model does not see: leave cads out")

        def denoise(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            task.scale(task.process, t)
            return Prediction(x, logvar=x if task.learned_variance else None)

        times, sampler = self.grid(task.process), self.make_sampler(task, jax.random.normal)
        cond = {"vec": jnp.zeros((1, 2))} if self.cads else {}
        guided = self.make_guidance(task, jnp.float32(self.guidance), cond, jax.random.normal)(denoise)
        x = jax.ShapeDtypeStruct((1, *task.shape), jnp.float32)
        jax.eval_shape(lambda x, key: sample(guided, sampler, x, times, cond, key), x, jax.random.key(0))


def _embeds(task: Diffusion) -> bool:
    """Whether the network sees a vec or a seq, as far as labels and what is made of images tell; texts are always embedded."""
    if not set(task.cond.keys) <= {"label", *task.cond.derived}:
        return True
    raw = {"image": jax.ShapeDtypeStruct((1, *task.shape), jnp.float32), "label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    key = jax.random.key(0)
    cond, _ = jax.eval_shape(lambda raw: task.cond.init_with_output(key, task.cond.prepare(raw, key)), raw)
    return not {"vec", "seq"}.isdisjoint(cond)
