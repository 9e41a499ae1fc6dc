"""How a page samples as diffusers' scheduler_config.json: the way back of pretrained/schedulers.py.

Nothing is inverted: every config that a class can have is read, and the first that reads as the page does is taken. So what is
written here is read there as it was, but for the rounding of a squared cosine's betas, which diffusers has in float32.
"""
from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffusion_jax.build import ConfigError, build, short
from diffusion_jax.diffusion import lcm, multistep, samplers, scheduler_times, times, unipc
from diffusion_jax.diffusion.process import SCHEDULES
from diffusion_jax.pretrained import schedulers
from diffusion_jax.pretrained.package import Page, Spec
from diffusion_jax.pretrained.schedulers import BETAS, Scheduler

PREDICTIONS = {"Eps": "epsilon", "V": "v_prediction", "X0": "sample", "Velocity": "flow_prediction"}
"""What networks predict, by the names of diffusion/scales.py, in diffusers' words."""
COMPARED = ("sampler", "times", "clip", "temperature")
"""Of a page's section `sample`; steps and guidance are arguments of a pipeline."""
PLAIN = {"clip": 0.0, "temperature": 1.0}
_LEVELS: tuple[Spec, ...] = (
    {}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True},
)
_SPACINGS: tuple[Spec, ...] = tuple({"timestep_spacing": word} for word in ("leading", "trailing", "linspace"))
_END_CLEAN: tuple[Spec, ...] = ({"set_alpha_to_one": True}, {"set_alpha_to_one": False})
_ENDS: tuple[Spec, ...] = ({"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"})
CHOICES: dict[str, tuple[tuple[Spec, ...], ...]] = {
    "DDIMScheduler": (_SPACINGS[:2], _END_CLEAN),
    "PNDMScheduler": (_SPACINGS[:2], _END_CLEAN, ({"skip_prk_steps": True},)),
    "DDPMScheduler": (_SPACINGS, ({"variance_type": "fixed_small"}, {"variance_type": "fixed_large"})),
    "EulerDiscreteScheduler": (_SPACINGS, _LEVELS, _ENDS),
    "EulerAncestralDiscreteScheduler": (_SPACINGS,),
    "HeunDiscreteScheduler": (_SPACINGS, _LEVELS),
    "DPMSolverMultistepScheduler": (_SPACINGS, (*_LEVELS, {"use_lu_lambdas": True}, {"use_flow_sigmas": True}), _ENDS),
    "UniPCMultistepScheduler": (_SPACINGS, (*_LEVELS, {"use_flow_sigmas": True}), _ENDS),
    "DEISMultistepScheduler": (_SPACINGS, _LEVELS),
    "LCMScheduler": (),
}
"""The options of a class that say how it samples, beside those that a page's words give: one of each group at a time."""
CLIPPED: tuple[Spec, ...] = ({}, {"thresholding": True, "clip_sample": False})
"""Two ways to clip x0 to [-1, 1]: thresholding with 1 for its largest value is the other, and the only one of some classes."""
METHODS = {
    "ddim": "DDIMScheduler", "plms": "PNDMScheduler", "ancestral": "DDPMScheduler", "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler", "edm": "HeunDiscreteScheduler", "heun": "HeunDiscreteScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler", "deis": "DEISMultistepScheduler",
    "lcm": "LCMScheduler",
}
"""Our samplers, and the class that is searched."""
STABLE = {"sampler": "ddim", "times": "leading,offset=1,last=0"}
FLOW = {"sampler": "dpmpp_2m", "times": "scheduler"}
"""What is written for a page that samples as no class does, in Stable Diffusion's pipelines and for a flow."""


def of_page(page: Page, stable: bool = False) -> tuple[Spec, tuple[str, ...]]:
    """(scheduler_config.json of a page, a sentence where no class samples as it does, and DDIM or a solver stands in).

    Args:
      page: a run's.
      stable: whether one of Stable Diffusion's pipelines is to run it, which has its own word on some options.

    Raises:
      ConfigError: no class has its process, or such a prediction.
    """
    task, sample = page["task"], dict(page.get("sample", {}))
    config = write(task["process"], task["scale"], sample, stable)
    if config is not None:
        return config, ()
    config = write(task["process"], task["scale"], _stand_in(page, stable), stable)
    if config is None:
        raise ConfigError(f"no scheduler of diffusers has the process {short(task['process'])}: --to original writes the network")
    words = ", ".join(str(sample[key]) for key in COMPARED if key in sample) or "as none says"
    name = config["_class_name"]
    return config, (f"No scheduler of diffusers samples as this run's page does ({words}): {name} stands in for it.",)


def _stand_in(page: Page, stable: bool) -> Mapping[str, Any]:
    """How a class samples that comes near a page: DDIM from the noisiest time on, clipped as the page clips."""
    if page["task"]["process"]["name"].endswith(":Flow"):
        return FLOW
    clip = page.get("sample", {}).get("clip", 0.0)
    return STABLE if stable else {"sampler": f"ddim,clip={clip}" if clip else "ddim", "times": "trailing"}


def write(process: Spec, scale: Spec, sample: Mapping[str, Any], stable: bool = False) -> Spec | None:
    """The config of the class that samples so; None where there is none.

    Args:
      process, scale: sections of a page's task.
      sample: its section `sample`.
      stable: see `of_page`.

    Raises:
      ConfigError: a process or a prediction that no class has.
    """
    table = _table(process, scale)
    sampler, options = spelt(sample.get("sampler", "ddim"))
    if sampler not in METHODS or (sampler, options.get("variance")) == ("ancestral", "learned_range"):
        return None
    wanted = canonical(Scheduler(process, table["prediction_type"], dict(sample)))
    words = _numbers(METHODS[sampler], sample, options) | _solver(sampler, options)
    for config in _configs(METHODS[sampler], table | words):
        try:
            scheduler = schedulers.read(config, stable)
        except ConfigError:                                                     # options that do not go together
            continue
        if canonical(scheduler) == wanted:
            return config
    return None


def _configs(kind: str, options: Spec) -> Iterator[Spec]:
    """Every config of a class with these options."""
    defaults = schedulers.CLASSES[kind]
    base = {"_class_name": kind, **{key: value for key, value in options.items() if key in defaults}}
    choices = (*CHOICES[kind], CLIPPED if options.get("clip_sample_range") == 1 and "thresholding" in defaults else ({},))
    for parts in itertools.product(*choices):
        yield base | functools.reduce(lambda one, other: one | other, parts, {})


def _table(process: Spec, scale: Spec) -> Spec:
    """The options that every class has: of the process, and of what the network predicts."""
    prediction = PREDICTIONS.get(scale["name"].rpartition(":")[2])
    kind = process["name"].rpartition(":")[2]
    if prediction is None or (kind == "Flow") != (prediction == "flow_prediction"):
        predicts = scale["name"].rpartition(":")[2]
        raise ConfigError(f"no scheduler of diffusers has networks that predict {predicts} under {kind}: --to original writes it")
    if kind == "Flow":
        return dict(num_train_timesteps=1000, prediction_type=prediction, flow_shift=float(process.get("shift", 1.0)))
    names = {ours: theirs for theirs, ours in BETAS.items()}
    schedule = process.get("schedule", "linear")
    if kind != "DDPM" or schedule not in names:
        raise ConfigError(f"no scheduler of diffusers has the process {kind} {schedule if kind == 'DDPM' else ''}: "
                          "--to original writes the network")
    betas = {} if schedule == "squaredcos" else dict(zip(("beta_start", "beta_end"), ends(process), strict=True))
    return dict(
        num_train_timesteps=process.get("steps", 1000), beta_schedule=names[schedule], prediction_type=prediction,
        rescale_betas_zero_snr=bool(process.get("zero_snr")), **betas,
    )


def ends(process: Spec) -> tuple[float, float]:
    """The first and the last beta of a DDPM process, before any are moved to zero terminal signal."""
    spelt_out = {name: process[name] for name in ("start", "end") if process.get(name) is not None}
    betas = SCHEDULES[process.get("schedule", "linear")](process.get("steps", 1000), **spelt_out)
    # As they were before roots were taken of them.
    start, end = (spelt_out.get(name, float(f"{betas[place]:.12g}")) for name, place in (("start", 0), ("end", -1)))
    return start, end


def _numbers(kind: str, sample: Mapping[str, Any], sampler: Spec) -> Spec:
    """The options of a class that are numbers, of a page's section."""
    _, grid = spelt(sample.get("times", "uniform"))
    clip = sampler.get("clip", 0.0) if kind == "DDIMScheduler" else sample.get("clip", 0.0)
    options: Spec = {"steps_offset": int(grid.get("offset", 0)), "clip_sample": bool(clip)}
    options |= {"clip_sample_range": clip} if clip else {}
    options |= {f"sigma_{end}": grid[name] for end, name in (("min", "low"), ("max", "high")) if name in grid}
    options |= {"original_inference_steps": int(grid.get("teacher", 50))} if kind == "LCMScheduler" else {}
    return options | ({"lambda_min_clipped": grid["lowest"]} if "lowest" in grid else {})


def _solver(name: str, options: Spec) -> Spec:
    """The options of a solver's class for one of its samplers here."""
    if name == "lcm":
        return dict(timestep_scaling=options.get("scaling", 10.0))
    if name in ("unipc", "deis"):
        order = int(options.get("order", 2 if name == "unipc" else 3))
        plain = dict(solver_order=order, lower_order_final=bool(options.get("lower_order_final", True)))
        if name == "deis":
            return plain
        return plain | dict(predict_x0=options.get("form", "x0") == "x0", solver_type=options.get("variant", "bh2"),
                            disable_corrector=list(range(int(options.get("uncorrected", 0)))))
    o = {"order": 2, "form": "x0", "sde": name == "dpmpp_2m_sde", "corrector": "midpoint", "lower_order_final": True,
         "euler_at_final": False} | options
    algorithm = f"{'sde-' if o['sde'] else ''}dpmsolver{'++' if o['form'] == 'x0' else ''}"
    return dict(solver_order=int(o["order"]), algorithm_type=algorithm, solver_type=o["corrector"],
                lower_order_final=bool(o["lower_order_final"]), euler_at_final=bool(o["euler_at_final"]))


# What is the same ---------------------------------------------------------------------------------------------------------------


def canonical(scheduler: Scheduler) -> tuple[Any, ...]:
    """What tells two ways to sample apart: the process and, with every default filled in, `COMPARED`."""
    process = build({key: value for key, value in scheduler.process.items() if key != "rounded"})
    betas = None if not hasattr(process, "betas") else process.betas.tobytes()
    sample = {key: scheduler.sample.get(key, PLAIN.get(key)) for key in COMPARED}
    sample |= {"sampler": filled(sample["sampler"] or "ddim"), "times": filled(sample["times"] or "uniform")}
    of_process = betas if betas is not None else str(process)
    return of_process, scheduler.prediction, tuple(sorted((key, str(value)) for key, value in sample.items()))


def spelt(text: str) -> tuple[str, Spec]:
    """'name,key=value,...' as (name, {key: value}); what reads as a number is one."""
    name, *parts = text.split(",")
    return name, {key: _literal(value) for key, _, value in (part.partition("=") for part in parts)}


def _literal(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def filled(text: str) -> str:
    """A sampler or times with all of its options, in their order."""
    name, options = spelt(text)
    function = _function(name)
    if function is None:
        return text
    defaults = {key: p.default for key, p in inspect.signature(function).parameters.items() if p.default is not p.empty}
    plain = {key: value for key, value in defaults.items() if isinstance(value, (bool, int, float, str, type(None)))}
    values = {key: _literal(str(value)) for key, value in (plain | options).items()}
    return schedulers.spelt(name, **dict(sorted(values.items())))


def _function(name: str) -> Callable[..., Any] | None:
    """What a sampler's or a grid's name stands for."""
    modules = (samplers, multistep, unipc, lcm, times, scheduler_times)
    return next((getattr(module, name) for module in modules if hasattr(module, name)), None)
