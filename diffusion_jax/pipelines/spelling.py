"""Samplers, times and guidance by name, as text: what a page's section `sample` and the command
line share.

    sampler   'ddim', 'ddim,eta=0.5', 'unipc,order=3' ...    diffusion/samplers.py, multistep.py,
                                                             unipc.py, lcm.py, few_steps.py
    times     'uniform', 'trailing', 'karras,rho=7' ...      diffusion/times.py, lcm.py
    schedule  'constant', 'dynamic_cfg,tau2=0.8' ...         `constant`, diffusion/guidance.py
    cads      's=0.1', 's=0.25,tau1=0.6,tau2=0.9,psi=1'      options of guidance.CADS
    skip      'layers=7.8.9', 'layers=7,scale=2.8,stop=0.2'  fields of diffusion/skip_layers.py:Skip
    interval  '0.3,3', '0.3,inf'                             two noise levels

A name is a function of that file, or of a package of the user's own that is allowed (build.py),
'mypkg.samplers:mine'; its options follow, separated by commas. What an option may be,
its default tells: a number, a whole one, True or False, or a word; `BOUNDS` has the ranges.
"""
from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from diffusion_jax.build import PACKAGE, ConfigError, number, symbol, unknown
from diffusion_jax.diffusion import guidance as g
from diffusion_jax.diffusion.skip_layers import Skip
from diffusion_jax.types import Array


def constant(w: Array, unit: g.Schedule) -> g.Schedule:
    """The guidance scale w at all times. `unit`, the clock, is what the other schedules read."""
    return lambda t: w


def _in(module: str, *names: str) -> dict[str, str]:
    """What `build` calls functions of diffusion/<module>.py."""
    return {name: f"diffusion_jax.diffusion.{module}:{name}" for name in names}


SAMPLERS = _in("samplers", "ancestral", "ddim", "euler", "euler_ancestral", "heun", "edm") | _in(
    "multistep", "plms", "dpm_solver", "dpmpp_2m", "dpmpp_2m_sde"
) | _in("unipc", "unipc", "deis") | _in("lcm", "lcm") | _in("few_steps", "meanflow")
GRIDS = _in(
    "times", "respace", "leading", "trailing", "linspace", "karras", "log_snr", "uniform"
) | _in("scheduler_times", "scheduler") | _in("flow_times", "flow_match") | _in("lcm", "distilled")
SCHEDULES = {"constant": f"{__name__}:constant"} | _in("guidance", "dynamic_cfg", "power_cosine")
CADS = "diffusion_jax.diffusion.guidance:CADS"
LITERALS = (bool, int, float, str, type(None))
"""What an option may be; parameters with another default, or without one, are the program's."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LAYERS = re.compile(r"\d{1,4}(\.\d{1,4})*", re.ASCII)
WORDS = {"True": True, "False": False}


class Bounds(NamedTuple):
    """The range of an option, inclusive."""

    least: float | None = None
    most: float | None = None
    whole: bool = False


SHARE, POSITIVE = Bounds(0, 1), Bounds(0)
CHURN: dict[str, Bounds] = dict.fromkeys(("s_churn", "s_min", "s_max", "s_noise"), POSITIVE)
LEVELS_OF_NOISE = {"sigma_min": POSITIVE, "sigma_max": POSITIVE}
BOUNDS: dict[str, dict[str, Bounds]] = {
    "ddim": {"eta": SHARE},
    "euler_ancestral": {"eta": SHARE},
    "edm": CHURN,
    "euler": CHURN,
    "unipc": {"uncorrected": Bounds(0, None, True)},
    # A step ends at a clean image or at the first time of a table: above it lie the other times.
    "leading": {"offset": Bounds(0, None, True), "last": Bounds(-1, 0, True)},
    # Its powers of a noise level leave double precision outside.
    "karras": LEVELS_OF_NOISE | {"rho": Bounds(0.1, 1000)},
    "log_snr": LEVELS_OF_NOISE,
    "power_cosine": {"power": POSITIVE},
    "CADS": {"s": POSITIVE, "psi": SHARE},
}
"""By function; what is not here is any finite number, and whole where its default is."""


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """'name,key=value,...' -> (name, {key: value}); without a name ('key=value,...') the name is
    ''.

    Raises:
      ConfigError: an option that is not key=value.
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
        options[key.strip()] = _value(value.strip())
    return name, options


def _value(text: str) -> bool | int | float | str:
    """What an option's text means: True, False, a number, or else a word."""
    if text in WORDS:
        return WORDS[text]
    # Python's own reading takes '1_0' and other alphabets' digits for numbers too.
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdecimal() and len(text) < 20 else float(text)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def named(kind: str, text: str, table: Mapping[str, str]) -> dict[str, Any]:
    """The build spec of 'name,key=value,...' whose name is in `table`.

    Raises:
      ConfigError: an unknown name or option (the message names the nearest known one), or a value
        of the wrong kind or out of its range.
    """
    name, options = parse(text)
    return spec_of(_symbol_of(kind, name, table), options, text)


def interval_of(text: str) -> tuple[float, float]:
    """The two noise levels of 'low,high'; the high end alone may be 'inf'.

    Raises:
      ConfigError: they do not read, or are in the wrong order.
    """
    try:
        low, high = text.split(",")
        top = math.inf if high.strip() == "inf" else number("interval", high, 0)
        bottom = number("interval", low, 0)
    except ValueError:
        bottom, top = 0.0, 0.0
    if not bottom < top:
        raise ConfigError(
            f"interval {text!r}: write 'low,high' in units of sigma / alpha, 0 or more"
        )
    return bottom, top


def skip_of(text: str) -> Skip | None:
    """Skip-layer guidance as its text spells it; None for ''.

    Raises:
      ConfigError: no blocks, an unknown option, or a number out of bounds.
    """
    if not text:
        return None
    name, options = parse(text)
    # As it is written: 7.10 are two blocks, and no number.
    spelt = dict(part.split("=") for part in text.split(",") if part.count("=") == 1)
    layers = next((value.strip() for key, value in spelt.items() if key.strip() == "layers"), "")
    if name or not LAYERS.fullmatch(layers):
        raise ConfigError(
            f"skip {text!r}: write options, the numbers of the blocks among them, for example "
            "'layers=7.8.9,scale=2.8,start=0.01,stop=0.2'"
        )
    for key in options:
        if key not in Skip.__annotations__:
            raise unknown("option of skip", key, [field.name for field in fields(Skip)])
    del options["layers"]
    return Skip(tuple(int(layer) for layer in layers.split(".")), **options)


def _symbol_of(kind: str, name: str, table: Mapping[str, str]) -> str:
    # A colon makes it a symbol of the user's own package, which is refused unless it is allowed.
    own = ":" in name and not name.startswith(f"{PACKAGE}.")
    if name not in table and not own:
        raise unknown(kind, name, table)
    return table.get(name, name)


def takes_noise(name: str) -> bool:
    """Whether a sampler, by what `build` calls it, has a source of noise."""
    return "noise" in inspect.signature(symbol(name)).parameters


def spec_of(name: str, options: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The build spec of `name`; `text` is what errors quote. What defaults to a word takes a
    word, what defaults to True or False one of these, the rest takes a number."""
    defaults = defaults_of(name)
    function = name.partition(":")[2]
    # A function of the user's own may have options of these names that are something else.
    bounds = BOUNDS.get(function, {}) if name.startswith(f"{PACKAGE}.") else {}
    for key, value in options.items():
        if not defaults:
            raise ConfigError(f"{text!r}: {function} takes no options")
        if key not in defaults:
            raise unknown(f"option of {function}", key, defaults)
        _check(f"{text!r}: {key}", value, defaults[key], bounds.get(key))
    return {**options, "name": name}


def defaults_of(name: str) -> dict[str, Any]:
    """The options of a function with their defaults."""
    # A process or a source of noise is no option: the program gives them.
    parameters = inspect.signature(symbol(name)).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, LITERALS)}


def _check(option: str, value: Any, default: Any, bounds: Bounds | None) -> None:
    """Raises ConfigError for an option that is not of the kind of its default, or out of range."""
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ConfigError(f"{option} takes a word, not {value!r}")
    elif isinstance(default, bool):
        # 0 and 1 as well, which is how some pages write it.
        if not isinstance(value, bool) and value not in (0, 1):
            raise ConfigError(f"{option} takes True or False, not {value!r}")
    elif isinstance(value, (bool, str)):
        raise ConfigError(f"{option} takes a number, not {value!r}")
    else:
        bounds = bounds or Bounds()
        whole = bounds.whole or isinstance(default, int)
        number(option, value, bounds.least, bounds.most, integer=whole)
