"""The scheduler of Stable Diffusion 3, diffusers' FlowMatchEulerDiscreteScheduler: our flow, Euler's steps, times of flow_match.

Other schedulers of flows (UniPC, DPM-Solver with use_flow_sigmas) are pretrained/schedulers.py's.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.build import ConfigError, number
from diffusion_jax.diffusion.flow_times import LEVELS, STEPS
from diffusion_jax.pretrained import schedulers, schedulers_export
from diffusion_jax.pretrained.package import DIFFUSERS, Page, Spec
from diffusion_jax.pretrained.schedulers import HERE, REMEDY, Scheduler, spelt

KIND = "FlowMatchEulerDiscreteScheduler"
DEFAULTS: Spec = {
    "num_train_timesteps": STEPS, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
    "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None,
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "time_shift_type": "exponential",
    "stochastic_sampling": False,
}
"""Of diffusers 0.42."""
FIXED = {
    "num_train_timesteps": (STEPS, "flows here were trained with as many times"),
    "use_dynamic_shifting": (False, "a shift by the size of the image is not here: set it to false, and shift"),
    "invert_sigmas": (False, "flows here go from noise to images"),
    "stochastic_sampling": (False, "Euler's steps of a flow draw nothing here: set it to false"),
}
"""Key -> (the only value that is here, why)."""
PROCESS, VELOCITY = "diffusion_jax.diffusion.process:Flow", "flow_prediction"
LEVEL_KEYS = {f"use_{name}_sigmas": name for name in LEVELS if name}


def read(config: Mapping[str, Any]) -> Scheduler:
    """A scheduler_config.json as we sample.

    Raises:
      ConfigError: a class, a key or a value that has no counterpart here; a process that is no flow.
    """
    if config.get("_class_name", KIND) != KIND:
        other = schedulers.read(config)
        if other.prediction != VELOCITY:
            raise ConfigError(f"Stable Diffusion 3 predicts velocities of a flow, {config['_class_name']} of {HERE} is of "
                              f"{other.prediction}: give {KIND}, or use_flow_sigmas {REMEDY}")
        return other
    options = schedulers.checked(config, DEFAULTS)
    for key, (value, reason) in FIXED.items():
        if options[key] != value:
            raise ConfigError(f"{key} {options[key]!r} of {KIND}: {reason} {REMEDY}")
    chosen = [key for key in LEVEL_KEYS if options[key]]
    if len(chosen) > 1:
        raise ConfigError(f"{HERE} has {' and '.join(chosen)}: set all but one to false {REMEDY}")
    times = {"levels": LEVEL_KEYS[chosen[0]]} if chosen else {}
    if options["shift_terminal"]:
        times["terminal"] = number(f"shift_terminal of {HERE}", options["shift_terminal"], 0, 1)
    shift = number(f"shift of {HERE}", options["shift"], 1e-6, 1e6)
    return Scheduler(dict(name=PROCESS, shift=shift), VELOCITY, dict(sampler="euler", times=spelt("flow_match", **times)))


def write(page: Page) -> tuple[Spec, tuple[str, ...]]:
    """The scheduler_config.json of a run, and a sentence where what it is sampled with has none there.

    Raises:
      ConfigError: its process is no flow.
    """
    task, sample = page["task"], page.get("sample", {})
    process = task["process"]
    if process["name"] != PROCESS or not str(task["scale"]["name"]).endswith(":Velocity"):
        raise ConfigError("diffusers' StableDiffusion3Pipeline samples velocities of a flow (task.process, task.scale): this run "
                          "cannot be written for it")
    config = {"_class_name": KIND, "_diffusers_version": DIFFUSERS, "num_train_timesteps": STEPS,
              "shift": process.get("shift", 1.0)}
    name, options = schedulers_export.spelt(str(sample.get("times", "flow_match")))
    if name == "flow_match" and sample.get("sampler", "euler") == "euler" and not options.get("dynamic"):
        levels = {key: True for key, level in LEVEL_KEYS.items() if options.get("levels") == level}
        terminal = {"shift_terminal": options["terminal"]} if options.get("terminal") else {}
        return config | levels | terminal, ()
    return config, (f"The scheduler is {KIND}; here the run is sampled with {sample.get('sampler')} at times {name}.",)
