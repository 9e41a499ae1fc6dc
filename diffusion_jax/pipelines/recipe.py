"""How to sample: everything about it that is not the model.

A recipe is what a page's section `sample` and the flags of the command line say. Samplers, times
and guidance are named there as text, 'ddim,eta=0.5' (pipelines/spelling.py); the strengths of
guidance are numbers, which are traced where one compiles.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, check_options, number, option, short, unknown
from diffusion_jax.diffusion import guidance as g
from diffusion_jax.diffusion.samplers import sample
from diffusion_jax.models.guidance_weight import reads_weight
from diffusion_jax.pipelines import idle
from diffusion_jax.pipelines.grid import check_grid, check_task
from diffusion_jax.pipelines.guidance_input import refuse_second
from diffusion_jax.pipelines.spelling import (
    CADS,
    GRIDS,
    SAMPLERS,
    SCHEDULES,
    defaults_of,
    interval_of,
    named,
    parse,
    skip_of,
    spec_of,
    takes_noise,
)
from diffusion_jax.types import (
    Array,
    Cond,
    Denoiser,
    Guidance,
    Key,
    Noise,
    Prediction,
    Process,
    Sampler,
)

MOST_STEPS = 100_000
"""Times are made before the first step: without a bound a slip would fill the memory."""
TRACED = ("s", "psi")
"""Options of CADS that are numbers of its formula, and not its clock or what it averages over."""
RESPACING = re.compile(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*|ddim[1-9]\d{0,5}|fast27", re.ASCII)


def fields_of(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, all of which are fields of a dataclass; `ConfigError` names the nearest for one
    that is not."""
    names = [field.name for field in fields(kind)]
    for key in options:
        if key not in names:
            raise unknown("sampling option", key, names)
    return dict(options)


class Strengths(NamedTuple):
    """How strongly a recipe guides: traced, so that all scales share one compiled program.

    Attributes:
      guidance: scale of classifier-free guidance or of autoguidance; None for none, which halves
        the cost.
      classifier: scale of a classifier's gradient.
      phi: rescaled phi; None for none.
      cads: `TRACED` options of CADS by name; None where the recipe's own hold.
      skip: scale of skip-layer guidance; None for none.
    """

    guidance: Array | float | None = None  # None is part of a pytree's structure, and so static
    classifier: Array | float = 1.0
    phi: Array | float | None = None
    cads: Mapping[str, Array] | None = None
    skip: Array | float | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything about sampling that is not the model.

    Attributes:
      sampler, times, schedule: see pipelines/spelling.py.
      steps: network calls of a first-order sampler, or an official respacing ('ddim50', '10,15,20',
        'fast27') with times 'respace'.
      guidance: classifier-free guidance scale; 1 is none.
      cfg_batch: how many halves of guidance the network sees at a time: 2, or 1 in less memory.
      phi: rescaled phi, in the space of what the network predicts.
      interval: 'low,high': guide only where low < sigma / alpha <= high.
      channels: guide only the first so many channels; 0 is all.
      keep_parallel: the share of guidance parallel to the prediction that is kept (2410.02416); 1
        is all of it.
      plus_plus: CFG++: the step's eps is that of the null prediction (2406.08070).
      cads: options of CADS; '' is none.
      skip: skip-layer guidance (2411.18664): which blocks, how strongly, in which steps; '' none.
      clip: clip x0 to [-clip, clip]; 0 is not.
      threshold: quantile of dynamic thresholding; 0 is none.
      classifier_scale: that of a classifier's gradient, where there is a classifier.
      augment: the level of conditioning augmentation that an upsampler samples at.
      temperature: factor of the noise that sampling starts from; GLIDE's upsampler has 0.997.
      levels: of the images that an upsampler reads: 256, rounded as in a file, or 0 for images as
        the stage before made them.

    Raises:
      ConfigError: a name or option that does not exist, a number that is not finite or out of
        bounds, at construction.
    """

    sampler: str = option(
        "ddim",
        "ddim, plms, heun, edm, dpmpp_2m ... or your own 'mypkg.mod:fn'; options: 'ddim,eta=0.5'",
    )
    steps: int | str = option(
        50,
        "Steps, or a respacing ('ddim50', '10,15,20', 'fast27') with --times respace",
        most=MOST_STEPS,
    )
    times: str = option("uniform", "uniform, trailing, leading, linspace, karras, log_snr, respace")
    guidance: float = option(1.0, "Classifier-free guidance scale; 1 is none")
    schedule: str = option(
        "constant", "Of the scale: constant, dynamic_cfg, 'power_cosine,power=4'"
    )
    cfg_batch: int = option(2, "Halves of guidance at once: 2, or 1 in less memory", least=1, most=2)
    phi: float = option(0.0, "Rescaled phi of guidance")
    interval: str = option("", "Noise levels to guide in: 'low,high' in sigma / alpha")
    channels: int = option(0, "Guide only the first so many channels", least=0)
    keep_parallel: float = option(
        1.0,
        "Share of guidance along the prediction itself that is kept; 1 is all, 0 none",
        least=0,
        most=1,
    )
    plus_plus: bool = option(False, "CFG++: take the step's noise from the null prediction")
    cads: str = option("", "CADS options: 's=0.1,tau1=0.6,tau2=0.9,psi=1'")
    skip: str = option(
        "",
        "Skip-layer guidance, away from a transformer without some blocks: "
        "'layers=7.8.9,scale=2.8,start=0.01,stop=0.2'",
    )
    clip: float = option(0.0, "Clip x0 to [-clip, clip]; 0 is not", least=0)
    threshold: float = option(0.0, "Quantile of dynamic thresholding; 0 is none", least=0, most=1)
    classifier_scale: float = option(1.0, "Scale of a classifier's gradient")
    augment: float = option(
        0.0, "Noise level that an upsampler's images are augmented with", least=0, most=1
    )
    temperature: float = option(
        1.0, "Of the noise that sampling starts from; of tokens, of their choice", least=0
    )
    levels: int = 256

    def __post_init__(self):
        # A flag is text, and '50' is to be the same recipe, and so the same program, as 50.
        text = self.steps.strip() if isinstance(self.steps, str) else ""
        if text.isascii() and text.isdecimal():
            object.__setattr__(self, "steps", number("steps", text, integer=True))
        check_options(self)
        # All names now, where the user writes them, and not in the middle of a run.
        named("sampler", self.sampler, SAMPLERS)
        named("times", self.times, GRIDS)
        named("schedule", self.schedule, SCHEDULES)
        if self.interval:
            interval_of(self.interval)
        skip_of(self.skip)
        self._check_steps()
        name, options = parse(self.cads)
        if name:
            raise ConfigError(
                f"cads {self.cads!r}: write options, for example 's=0.1,tau1=0.6,tau2=0.9'"
            )
        spec_of(CADS, options, self.cads)
        if not isinstance(self.levels, int) or self.levels not in (0, 256):
            raise ConfigError(f"levels {short(self.levels)} is 256, as in a file, or 0")

    def _check_steps(self) -> None:
        steps = self.steps
        if steps == 0:
            raise ConfigError("steps 0 makes no images: at least 1")
        if isinstance(steps, int) and steps > 0:
            return
        # '' is all times of a table, which pages may say.
        if isinstance(steps, int) or (steps and not RESPACING.fullmatch(steps)):
            raise ConfigError(
                f"steps {short(steps)} is neither a number, at least 1, nor a respacing: write 50, "
                "or 'ddim50', '10,15,20' or 'fast27' with times 'respace'"
            )
        if parse(self.times)[0] != "respace":
            raise ConfigError(f"steps {steps!r} is a respacing: it goes with times 'respace'")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Recipe:
        """A recipe of a config's section.

        Raises:
          ConfigError: an unknown key; the message names the nearest known one.
        """
        return cls(**fields_of(cls, options))

    def using(self, **changes: Any) -> Recipe:
        """This recipe with some of its fields changed.

        Raises:
          ConfigError: an unknown field (the message names the nearest known one), or a value that
            it cannot have.
        """
        return replace(self, **fields_of(Recipe, changes))

    @property
    def guides(self) -> bool:
        """Whether it guides away from anything."""
        # CFG++ takes the step's noise from the null prediction at every scale.
        return self.guidance != 1 or self.plus_plus

    def split(self) -> tuple[Recipe, Strengths]:
        """(the recipe without its scales, which is static where one compiles; its scales, which
        are traced)."""
        guidance = jnp.float32(self.guidance) if self.guides else None
        phi = jnp.float32(self.phi) if self.phi else None
        # Their defaults in the static part, so that recipes which differ in scales are equal there.
        static = replace(self, guidance=1.0, classifier_scale=1.0, phi=0.0)
        strengths = Strengths(guidance, jnp.float32(self.classifier_scale), phi)
        skip = skip_of(self.skip)
        if skip is not None:
            static = replace(static, skip=skip.text)
            strengths = strengths._replace(skip=jnp.float32(skip.scale))
        if not self.cads:
            return static, strengths
        options = defaults_of(CADS) | parse(self.cads)[1]
        cads = {name: jnp.float32(options.pop(name)) for name in TRACED}
        # All others, written out, so that no text of CADS is empty, which is none.
        text = ",".join(f"{name}={value}" for name, value in options.items())
        return replace(static, cads=text), strengths._replace(cads=cads)

    def grid(self, process: Process) -> np.ndarray:
        """The times, [N + 1]."""
        return build(named("times", self.times, GRIDS), process, self.steps)

    def make_sampler(self, task: Any, noise: Noise) -> Sampler:
        """The sampler; an ancestral one takes the task's own variance unless told otherwise."""
        spec = named("sampler", self.sampler, SAMPLERS)
        name, _ = parse(self.sampler)
        if name == "ancestral":  # its published default depends on the model: fixed, or learned
            spec.setdefault("variance", task.variance)
        random = {"noise": noise} if takes_noise(spec["name"]) else {}
        return build(spec, task.process, **random)

    def make_guidance(
        self,
        task: Any,
        strengths: Strengths,
        null: Cond | None,
        noise: Noise,
        classifier: Guidance | None = None,
        weak: Denoiser | None = None,
        skip: Guidance | None = None,
    ) -> Guidance:
        """All guidance in its order: on x0 (clips what was thresholded), then a classifier's, then
        CADS, then classifier-free guidance where `null` is given, or autoguidance where `weak` is.

        The ancestral sampler shifts its mean by the classifier's gradient; for the others it is
        folded into x0.

        Args:
          task: what is guided, tasks/kinds.py:Pictures or a diffusion prior.
          strengths: the scales; the recipe's own are not read.
          null: the embedded null condition.
          noise: the source of noise of CADS.
          classifier: guidance by a classifier's gradient.
          weak: what to guide away from in place of `null`.
          skip: skip-layer guidance, on top of these two.
        """
        process = task.process
        # `chain` applies the last part first: what stands further up sees the guided x0.
        parts = [g.Clip(self.clip)] if self.clip else []
        parts += [g.Threshold(self.threshold)] if self.threshold else []
        if classifier is not None:
            parts += [classifier] if self.ancestral else [g.Fold(process), classifier]
        # In front of CFG, so that the null condition which that adds stays unperturbed.
        if self.cads:
            spec = spec_of(CADS, parse(self.cads)[1], self.cads)
            parts.append(build(spec, process.unit, noise=noise, **(strengths.cads or {})))
        parts += [skip] if skip is not None else []
        if null is not None or weak is not None:
            parts.append(self._away(task, strengths, null, weak))
        return g.chain(*parts)

    def _away(
        self, task: Any, strengths: Strengths, null: Cond | None, weak: Denoiser | None
    ) -> Guidance:
        """Guidance away from the null condition, or from a weaker model."""
        process = task.process
        mix = g.Mix(
            phi=0.0 if strengths.phi is None else strengths.phi,
            space=(process, task.scale),  # the papers rescale and project the network's own output
            remove_parallel=self.keep_parallel != 1,
            keep_parallel=self.keep_parallel,
            channels=self.channels or None,
            plus_plus=self.plus_plus,
        )
        scale = build(named("schedule", self.schedule, SCHEDULES), strengths.guidance, process.unit)
        if weak is not None:
            away = g.Autoguidance(scale, weak, mix)
        else:
            away = g.CFG(scale, null or {}, mix, together=self.cfg_batch == 2)
        return g.interval(away, process, *interval_of(self.interval)) if self.interval else away

    @property
    def ancestral(self) -> bool:
        """Whether the sampler takes the posterior's mean, which knows x0 alone."""
        return parse(self.sampler)[0] == "ancestral"

    @property
    def _reads_eps(self) -> bool:
        """Whether the sampler steps by the prediction's noise, and not by its x0 alone."""
        name, options = parse(self.sampler)
        form = options.get("form", "x0") if name in ("dpm_solver", "unipc") else ""
        of_x0 = name in ("dpmpp_2m", "dpmpp_2m_sde", "lcm") or form == "x0"
        return not self.ancestral and not of_x0

    def check(self, task: Any, weak: bool = False) -> None:
        """Traces the sampling of `task`, without its network and without computing anything.

        Args:
          task: what to sample from.
          weak: whether there is a weak model to guide away from.

        Raises:
          ConfigError: times, sampler or guidance that do not go with the task's process,
            parametrisation or conditions.
        """
        refuse_second(task, weak=weak, plus_plus=self.plus_plus)
        idle.refuse_halves(self, weak)
        can_be_guided = task.cond.droppable or weak or reads_weight(task.cond)
        if self.guides and not can_be_guided:
            raise ConfigError(
                "this model has no condition that could guide it: leave guidance at 1, or give a "
                "--weak model"
            )
        if self.plus_plus and not self._reads_eps:
            raise ConfigError(
                "CFG++ changes the noise of a step, which the ancestral sampler and DPM-Solver++ do "
                "not read: choose ddim"
            )
        if self.cads and not idle.embeds(task):
            raise ConfigError(
                "CADS perturbs an embedded label or text, which this model does not see: leave "
                "cads out"
            )

        def denoise(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            task.scale(task.process, t)  # refuses a parametrisation that is undefined at some time
            return Prediction(x, logvar=x if task.learned_variance else None)

        times = self.grid(task.process)
        # First of all what no grid would mend.
        check_task(task, self.sampler)
        sampler = self.make_sampler(task, jax.random.normal)
        check_grid(task.process, times, self.sampler, task.variance)
        cond = {"vec": jnp.zeros((1, 2))} if self.cads else {}
        _, strengths = self.split()
        null = None if strengths.guidance is None else cond
        guided = self.make_guidance(task, strengths, null, jax.random.normal)(denoise)

        def run(x: Array, key: Key) -> Array:
            return sample(guided, sampler, x, times, cond, key)

        # Traced only: samplers and guidance refuse what does not go together while they are built.
        x = jax.ShapeDtypeStruct((1, *task.shape), jnp.float32)
        jax.eval_shape(run, x, jax.random.key(0))

    def check_changes(
        self, names: Iterable[str], task: Any, classifier: bool = False, swept: str = ""
    ) -> None:
        """Refuses fields that somebody set and that change nothing.

        Args:
          names: the fields that were set; those with their default value are left alone.
          task: what is sampled from.
          classifier: whether a classifier guides.
          swept: the field that takes other values than its own, in a sweep.

        Raises:
          ConfigError: names the field, and says why it changes nothing.
        """
        defaults = {field.name: field.default for field in fields(Recipe)}
        for name in names:
            # A default is no demand: scripts set every field.
            if getattr(self, name) == defaults[name]:
                continue
            reason = idle.reason(self, name, task, classifier, swept)
            if reason:
                raise ConfigError(reason)
