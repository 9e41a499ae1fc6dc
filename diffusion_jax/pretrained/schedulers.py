"""diffusers' scheduler_config.json: the process, what the network predicts, and how a page samples like it.

A config holds what differs from the defaults of its class: `CLASSES` (schedulers_classes.py) has them all. Every key is
mapped, or refused in one line that says what to do, or announced where no class has it. A key of another class changes nothing in
diffusers either, which leaves it when one class is made from the config of another.

diffusers' own pipelines of Stable Diffusion set steps_offset to 1 and clip_sample to false, whatever the file says.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, build, number, short, unknown
from diffusion_jax.diffusion.scheduler_times import noise_levels
from diffusion_jax.pretrained.schedulers_classes import CLASSES, OF_OTHERS, Options

Spec = dict[str, Any]


class Scheduler(NamedTuple):
    """How a published model is sampled.

    Attributes:
      process: what to `build` the process from.
      prediction: 'epsilon', 'v_prediction', 'sample' or 'flow_prediction'.
      sample: keys of a page's section `sample`.
    """

    process: Spec
    prediction: str
    sample: Spec


BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squaredcos"}
SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = {
    "PNDMScheduler": ("epsilon",),                  # diffusers' mixes the v of several times, which means nothing
    "EulerAncestralDiscreteScheduler": ("epsilon", "v_prediction"),
}
"""What networks of each class predict; those of the others predict samples too."""
FIXED = {
    "trained_betas": (None, "betas of its own are no schedule of a process here"),
    "interpolation_type": ("linear", "noise levels beside the times are not here: set it to 'linear'"),
    "timestep_type": ("discrete", "networks here are shown times: set it to 'discrete'"),
    "use_dynamic_shifting": (False, "a shift by the size of the image is not here: set it to false, and flow_shift"),
    "solver_p": (None, "a predictor of another class is not here: set it to null"),
    "shift_terminal": (None, "a last noise level of a flow beside 0 is not here: set it to null"),
    "skip_prk_steps": (True, "the Runge-Kutta steps before are not here: set it to true, as Stable Diffusion has it"),
}
"""Key -> (the only value that is here, why)."""
HERE = "scheduler/scheduler_config.json"
REMEDY = "in --official, a JSON file {\"scheduler\": {key: value}} over it"
LONGEST = 100_000
"""More times than any table was trained with; each asks for memory."""


def read(config: Mapping[str, Any], stable: bool = False) -> Scheduler:
    """A scheduler_config.json as we sample.

    Args:
      config: what it says.
      stable: whether one of Stable Diffusion's pipelines is what diffusers runs the model in.

    Raises:
      ConfigError: a class, a key or a value that has no counterpart here.
    """
    kind = config.get("_class_name", "DDIMScheduler")
    if "_class_name" not in config:
        print(f"{HERE} names no _class_name: read as {kind}")
    if not isinstance(kind, str) or kind not in CLASSES:
        classes = ", ".join(name.removesuffix("Scheduler") for name in CLASSES if "Parallel" not in name)
        raise ConfigError(f"no sampler here is diffusers' {short(kind)}: give the _class_name of one of {classes} {REMEDY}")
    options = checked(config, CLASSES[kind])
    if stable:
        options = _of_stable(options)
    for key, (value, reason) in FIXED.items():
        if key in options and options[key] != value:
            raise ConfigError(f"{key} {options[key]!r} of {kind}: {reason} {REMEDY}")
    if options.get("use_flow_sigmas"):
        process, prediction = _flow(options)
    else:
        process, prediction = _process(options), _prediction(kind, options)
    return Scheduler(process, prediction, METHODS[kind](options, process) | _clipped(kind, options))


def checked(config: Mapping[str, Any], defaults: Options) -> Options:
    """The options of a class: its defaults and what the config says of them, each of its default's type.

    Raises:
      ConfigError: a value of another type.
    """
    everyone = set().union(*CLASSES.values(), OF_OTHERS)
    strange = sorted(key for key in config if not key.startswith("_") and key not in everyone)
    if strange:
        print(f"{HERE} has {', '.join(strange)}, which no scheduler known here reads: left out")
    return {key: _value(key, config.get(key, default), default) for key, default in defaults.items()}


def _value(key: str, value: Any, default: Any) -> Any:
    """A value of the type of its default."""
    if key in ("sigma_min", "sigma_max", "trained_betas", "variance_type") and value is None:
        return None
    if isinstance(default, list):
        whole = isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if not whole:
            raise ConfigError(f"{key} of {HERE} is a list of steps, got {short(value)}")
        return list(value)
    if key in ("sigma_min", "sigma_max"):
        return number(f"{key} of {HERE}", value, 0)
    if key == "lambda_min_clipped" and value in (-math.inf, "-inf"):
        return -math.inf
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{key} of {HERE} is true or false, got {value!r}")
        return value
    if isinstance(default, (int, float)):
        if isinstance(value, str):
            raise ConfigError(f"{key} of {HERE} is a number, got {value!r}")
        return number(f"{key} of {HERE}", value, integer=isinstance(default, int))
    if isinstance(default, str) and not isinstance(value, str):
        raise ConfigError(f"{key} of {HERE} is a word, got {value!r}")
    return value


def _of_stable(options: Options) -> Options:
    """The options as Stable Diffusion's pipelines set them, and says so where that changes anything."""
    wanted = {"steps_offset": 1, "clip_sample": False}
    changed = {key: value for key, value in wanted.items() if options.get(key, value) != value}
    leading = options["timestep_spacing"] == "leading" and "timestep_scaling" not in options        # LCM has its own times
    matters = {key: value for key, value in changed.items() if key != "steps_offset" or leading}
    for key, value in matters.items():
        print(f"{HERE} has {key} {options[key]}: read as {value}, as Stable Diffusion's pipelines of diffusers do")
    return options | changed


# The process ----------------------------------------------------------------------------------------------------------------


def _process(options: Options) -> Spec:
    """The process of a table of betas."""
    name = options["beta_schedule"]
    if name not in BETAS:
        raise ConfigError(f"no process here has the scheduler's betas {name!r}; known: {', '.join(BETAS)}")
    steps = number(f"num_train_timesteps of {HERE}", options["num_train_timesteps"], 1, LONGEST, integer=True)
    spec = dict(
        name="diffusion_jax.diffusion.process:DDPM", schedule=BETAS[name], steps=steps,
        zero_snr=options.get("rescale_betas_zero_snr", False),
    )
    if name == "squaredcos_cap_v2":
        return spec | {"rounded": True}
    start, end = (number(f"{key} of {HERE}", options[key], 0, 1) for key in ("beta_start", "beta_end"))
    return spec | {"start": start, "end": end}


def _prediction(kind: str, options: Options) -> str:
    """What the network predicts."""
    predictions = PREDICTIONS.get(kind, ("epsilon", "v_prediction", "sample"))
    prediction = options["prediction_type"]
    if prediction not in predictions:
        raise ConfigError(f"{kind} of networks that predict {prediction!r} is not here, of {' and '.join(predictions)} it is: "
                          f"give another _class_name {REMEDY}")
    if prediction == "epsilon" and options.get("rescale_betas_zero_snr"):
        raise ConfigError("rescale_betas_zero_snr leaves no image at the last time, where epsilon says nothing of x0: "
                          f"set prediction_type to v_prediction, or it to false {REMEDY}")
    return prediction


def _flow(options: Options) -> tuple[Spec, str]:
    """The process of flow sigmas, and what its networks predict."""
    if "final_sigmas_type" not in options:
        raise ConfigError(f"DEIS of a flow stops before the image is clean: give _class_name UniPCMultistepScheduler {REMEDY}")
    if options["prediction_type"] != "flow_prediction":
        raise ConfigError(f"use_flow_sigmas goes with prediction_type flow_prediction, got {options['prediction_type']!r}")
    if options["num_train_timesteps"] != 1000:
        raise ConfigError(f"a flow here has num_train_timesteps 1000, got {options['num_train_timesteps']}")
    if options["final_sigmas_type"] != "zero":
        raise ConfigError(f"a flow here ends at noise 0: set final_sigmas_type to zero {REMEDY}")
    shift = number(f"flow_shift of {HERE}", options["flow_shift"], 1e-6, 1e6)
    return dict(name="diffusion_jax.diffusion.process:Flow", shift=shift), "flow_prediction"


# The sampler and its times --------------------------------------------------------------------------------------------------


def spelt(name: str, **options: Any) -> str:
    """A sampler or times with options, as pages write them."""
    return ",".join([name, *(f"{key}={value}" for key, value in options.items())])


def _whole_times(options: Options, last: int) -> str:
    """Times of the schedulers that count them."""
    spacing = _word(options, "timestep_spacing", SPACINGS)
    if spacing == "leading":
        return spelt("leading", offset=options["steps_offset"], last=last)
    if last == -1:
        return spacing
    return spelt("scheduler", spacing=spacing, whole=True, last=last)


def _word(options: Options, key: str, words: tuple[str, ...]) -> str:
    """One of the words that an option may be."""
    if options[key] not in words:
        raise unknown(f"{key} of {HERE}", options[key], words)
    return options[key]


def _ddim(options: Options, process: Spec) -> Spec:
    if options["timestep_spacing"] == "linspace":
        raise ConfigError("steps of linspace do not meet in diffusers' DDIM and PNDM, each goes back by equal strides: "
                          f"set timestep_spacing to leading or trailing {REMEDY}")
    return dict(sampler="ddim", times=_whole_times(options, -1 if options["set_alpha_to_one"] else 0))


def _pndm(options: Options, process: Spec) -> Spec:
    return _ddim(options, process) | {"sampler": "plms"}


def _ddpm(options: Options, process: Spec) -> Spec:
    kinds = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"}
    kind = _word(options, "variance_type", tuple(kinds))
    if kind == "fixed_large" and options["timestep_spacing"] == "leading" and options["steps_offset"]:
        print("variance_type fixed_large adds noise in diffusers' last step, which ends at a clean image here")
    return dict(sampler=spelt("ancestral", variance=kinds[kind]), times=_whole_times(options, -1))


def _levels(options: Options, **names: str) -> str:
    """Which noise levels take the place of the times."""
    words = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"} | names
    chosen = [key for key in words if options.get(key)]
    if len(chosen) > 1:
        raise ConfigError(f"{HERE} has {' and '.join(chosen)}: set all but one to false {REMEDY}")
    return words[chosen[0]] if chosen else ""


def _karras_family(options: Options, process: Spec) -> Spec:
    """Times of Euler, Heun and Euler ancestral, which are not rounded, and the noise that they start from."""
    last = _last(options)
    levels = _levels(options)
    spacing = _word(options, "timestep_spacing", SPACINGS)
    ends = _ends(options) if levels else {}
    shape: Options = {"levels": levels} if levels else {}
    if spacing == "leading":
        shape |= {"spacing": spacing, "offset": options["steps_offset"]}
    elif spacing == "trailing":
        shape |= {"spacing": spacing}
    times = spelt("scheduler", **(shape | ends | ({"last": last} if last != -1 else {})))
    if spacing == "leading" and not levels:
        times = spelt("leading", offset=options["steps_offset"], last=last)
    # Without the variance of the image beside that of the noise, which the others have.
    top = ends.get("high", _largest(process))
    return dict(times=times) | ({} if spacing == "leading" else {"temperature": round(top / math.hypot(1, top), 7)})


def _ends(options: Options) -> Options:
    """Ends of the noise levels that a config gives.

    Raises:
      ConfigError: a last level that the run would stop at, above the least of the table.
    """
    ends = {"low": options.get("sigma_min"), "high": options.get("sigma_max")}
    if ends["low"] and "predict_x0" in options and options["final_sigmas_type"] == "sigma_min":
        raise ConfigError(f"sigma_min with final_sigmas_type sigma_min leaves noise in the image: set sigma_min to null {REMEDY}")
    return {key: value for key, value in ends.items() if value}


def _largest(process: Spec) -> float:
    return float(noise_levels(build(process))[-1])


def _last(options: Options) -> int:
    """Where the last step ends."""
    return -1 if options.get("final_sigmas_type", "zero") == "zero" else {"sigma_min": 0}[
        _word(options, "final_sigmas_type", ("zero", "sigma_min"))]


def _euler(options: Options, process: Spec) -> Spec:
    return dict(sampler="euler") | _karras_family(options, process)


def _euler_ancestral(options: Options, process: Spec) -> Spec:
    return dict(sampler="euler_ancestral") | _karras_family(options, process)


def _heun(options: Options, process: Spec) -> Spec:
    return dict(sampler="edm") | _karras_family(options, process)


def _dpm(options: Options, process: Spec) -> Spec:
    algorithms = {"dpmsolver++": ("x0", False), "dpmsolver": ("eps", False), "sde-dpmsolver++": ("x0", True),
                  "sde-dpmsolver": ("eps", True), "deis": ("x0", False)}
    algorithm = _word(options, "algorithm_type", tuple(algorithms))
    form, sde = algorithms[algorithm]
    last = _last(options)
    if last == -1 and not algorithm.endswith("++"):
        raise ConfigError(f"algorithm_type {algorithm} cannot end at noise 0: set final_sigmas_type to sigma_min {REMEDY}")
    correctors = {"midpoint": "midpoint", "heun": "heun", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}
    corrector = correctors[_word(options, "solver_type", tuple(correctors))]
    ours = {
        "order": number(f"solver_order of {HERE}", options["solver_order"], 1, 3, integer=True), "form": form, "sde": sde,
        "corrector": corrector, "lower_order_final": options["lower_order_final"], "euler_at_final": options["euler_at_final"],
    }
    plain = {"order": 2, "form": "x0", "sde": False, "corrector": "midpoint", "lower_order_final": True, "euler_at_final": False}
    other = {key: value for key, value in ours.items() if value != plain[key]}
    sampler = {(): "dpmpp_2m", ("sde",): "dpmpp_2m_sde"}.get(tuple(other), spelt("dpm_solver", **other))
    return dict(sampler=sampler, times=_dpm_times(options, process, last))


def _unipc(options: Options, process: Spec) -> Spec:
    last = _last(options)
    order = number(f"solver_order of {HERE}", options["solver_order"], 1, 3, integer=True)
    variants = {"bh1": "bh1", "bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}
    variant = variants[_word(options, "solver_type", tuple(variants))]
    off = options["disable_corrector"]
    if sorted(set(off)) != list(range(len(off))):
        raise ConfigError(f"disable_corrector {short(off)}: here it is off for the first steps alone, write [0, 1, 2] {REMEDY}")
    # What divides 0 by 0 in diffusers' last step.
    ill = {"predict_x0 false": not options["predict_x0"], "solver_type bh1": variant == "bh1",
           "lower_order_final false": order > 1 and not options["lower_order_final"]}
    for option in (name for name, chosen in ill.items() if chosen and last == -1):
        raise ConfigError(f"{option} cannot end at noise 0: set final_sigmas_type to sigma_min {REMEDY}")
    ours = {"order": order, "form": "x0" if options["predict_x0"] else "eps", "variant": variant, "uncorrected": len(off),
            "lower_order_final": options["lower_order_final"]}
    plain = {"order": 2, "form": "x0", "variant": "bh2", "uncorrected": 0, "lower_order_final": True}
    sampler = spelt("unipc", **{key: value for key, value in ours.items() if value != plain[key]})
    return dict(sampler=sampler, times=_dpm_times(options, process, last))


def _deis(options: Options, process: Spec) -> Spec:
    _word(options, "algorithm_type", ("deis", "dpmsolver", "dpmsolver++"))
    _word(options, "solver_type", ("logrho", "midpoint", "heun", "bh1", "bh2"))
    order = number(f"solver_order of {HERE}", options["solver_order"], 1, 3, integer=True)
    ours = {"order": order} if order != 3 else {}
    ours |= {} if options["lower_order_final"] else {"lower_order_final": False}
    return dict(sampler=spelt("deis", **ours), times=_dpm_times(options, process, 0))


def _lcm(options: Options, process: Spec) -> Spec:
    scaling = number(f"timestep_scaling of {HERE}", options["timestep_scaling"], 1e-9)
    longest = process["steps"]
    teacher = number(f"original_inference_steps of {HERE}", options["original_inference_steps"], 1, longest, integer=True)
    return dict(
        sampler=spelt("lcm", **({"scaling": scaling} if scaling != 10 else {})),
        times=spelt("distilled", **({"teacher": teacher} if teacher != 50 else {})),
    )


def _dpm_times(options: Options, process: Spec, last: int) -> str:
    """Times of DPM-Solver and its kin: one more is laid and left out, except in equal strides from the end; all are rounded."""
    levels = _levels(options, use_lu_lambdas="exponential", use_flow_sigmas="flow")
    spacing = _word(options, "timestep_spacing", SPACINGS)
    end = {"last": last} if last != -1 else {}
    if levels == "flow":
        return "scheduler" if "predict_x0" not in options else spelt("scheduler", spare=1)
    if levels:
        return spelt("scheduler", levels=levels, **_ends(options), **end)
    shape: Options = {} if spacing == "linspace" else {"spacing": spacing}
    if spacing == "leading":
        shape["offset"] = options["steps_offset"]
    shape |= {"whole": True} if spacing == "trailing" else {"whole": True, "spare": 1}
    if options.get("lambda_min_clipped", -math.inf) > -math.inf:
        shape["lowest"] = options["lambda_min_clipped"]
    return spelt("scheduler", **shape, **end)


METHODS = {
    "DDIMScheduler": _ddim, "DDIMParallelScheduler": _ddim, "DDPMScheduler": _ddpm, "DDPMParallelScheduler": _ddpm,
    "PNDMScheduler": _pndm, "EulerDiscreteScheduler": _euler, "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun, "DPMSolverMultistepScheduler": _dpm, "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis, "LCMScheduler": _lcm,
}
"""Class -> its sampler and times, keys of the section `sample`."""


def _clipped(kind: str, options: Options) -> Spec:
    """Clipping of x0; thresholding goes first."""
    limit = 0.0
    if options.get("thresholding"):
        if options["sample_max_value"] != 1:
            raise ConfigError(f"thresholding here leaves images in [-1, 1]: set sample_max_value to 1 {REMEDY}")
        limit = 1.0                       # a quantile that is clipped to 1 ... 1
    elif options.get("clip_sample"):
        limit = number(f"clip_sample_range of {HERE}", options["clip_sample_range"], 0)
    if not limit:
        return {}
    # DDIM keeps the network's eps beside a clipped x0.
    return {"sampler": spelt("ddim", clip=limit)} if kind.startswith("DDIM") else {"clip": limit}
