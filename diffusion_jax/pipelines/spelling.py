"""Samplers, times and guidance by name, as text: what a page's section `sample` and the command
line share.

    sampler   'ddim', 'ddim,eta=0.5', 'edm,s_churn=40' ...   diffusion/samplers.py, multistep.py
    times     'uniform', 'trailing', 'karras,rho=7' ...      diffusion/times.py
    schedule  'constant', 'dynamic_cfg,tau2=0.8' ...         `constant`, diffusion/guidance.py
    cads      's=0.1', 's=0.25,tau1=0.6,tau2=0.9,psi=1'      options of guidance.CADS

A name is a function of that file; its options follow, separated by commas.
"""
from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from typing import Any

from diffusion_jax.build import ConfigError, symbol, unknown
from diffusion_jax.diffusion import guidance as g
from diffusion_jax.types import Array


def constant(w: Array, unit: g.Schedule) -> g.Schedule:
    """The guidance scale w at all times. `unit`, the clock, is what the other schedules read."""
    return lambda t: w


def _in(module: str, *names: str) -> dict[str, str]:
    """What `build` calls functions of diffusion/<module>.py."""
    return {name: f"diffusion_jax.diffusion.{module}:{name}" for name in names}


SAMPLERS = _in("samplers", "ancestral", "ddim", "euler", "euler_ancestral", "heun", "edm") | _in(
    "multistep", "plms", "dpm_solver", "dpmpp_2m", "dpmpp_2m_sde"
)
DETERMINISTIC = ("heun", "plms", "dpmpp_2m")
"""Samplers that take no source of noise."""
GRIDS = _in("times", "respace", "leading", "trailing", "linspace", "karras", "log_snr", "uniform")
SCHEDULES = {"constant": f"{__name__}:constant"} | _in("guidance", "dynamic_cfg", "power_cosine")
CADS = "diffusion_jax.diffusion.guidance:CADS"


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """'name,key=value,...' -> (name, {key: value}); without a name ('key=value,...') the name is
    ''.

    Raises:
      ConfigError: an option that is not key=value, or a value that is not a Python literal.
    """
    name = ""
    options = {}
    for i, part in enumerate(part.strip() for part in text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            if i:
                raise ConfigError(
                    f"{text!r}: write options as key=value, separated by commas; {part!r} is not"
                )
            name = part
            continue
        try:
            options[key] = ast.literal_eval(value)  # literals only: a page's text runs no code
        except (ValueError, SyntaxError):
            options[key] = value  # a word, which needs no quotes on a command line
    return name, options


def named(kind: str, text: str, table: Mapping[str, str]) -> dict[str, Any]:
    """The build spec of 'name,key=value,...' whose name is in `table`.

    Raises:
      ConfigError: an unknown name or option (the message names the nearest known one), or a value
        of the wrong kind.
    """
    name, options = parse(text)
    if name not in table:
        raise unknown(kind, name, table)
    return spec_of(table[name], options, text)


def spec_of(name: str, options: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The build spec of `name`; `text` is what errors quote. What defaults to a word takes a
    word, the rest takes a number."""
    # Parameters without such a default, a process or a source of noise, are no options: the program
    # gives them.
    literals = (bool, int, float, str, type(None))
    parameters = inspect.signature(symbol(name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, literals)}
    function = name.partition(":")[2]
    for key, value in options.items():
        if not defaults:
            raise ConfigError(f"{text!r}: {function} takes no options")
        if key not in defaults:
            raise unknown(f"option of {function}", key, defaults)
        takes_word = isinstance(defaults[key], str)
        if not isinstance(value, str if takes_word else (bool, int, float)):
            raise ConfigError(
                f"{text!r}: {key} takes a {'word' if takes_word else 'number'}, not {value!r}"
            )
    return {"name": name, **options}
