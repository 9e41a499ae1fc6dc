"""What a mode is asked: dataclasses of options, each leaf of which is a flag of the command line.

A mode's `Options` has groups of these and fields of its own. A field made by `build.option` is a
flag: its name, its default, its bounds and its help are the field's. None stands for what the page
or the model says.

    leaves(Options)                the flags, by name
    built(Options, {"num": 4})     Options of leaves, as the command line and tests make them
"""
from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from diffusion_jax.build import ConfigError, check_options, number, option, unknown
from diffusion_jax.evaluation import options as measurement
from diffusion_jax.modes import MODES, module_of
from diffusion_jax.pipelines.request import Batch, Helpers, strengths

Page = Mapping[str, Any]
"""A page of configs/, which `--config` names and `--config.<key>=<value>` changes."""
PAGE_HELP = (
    "A page of configs/, by its name or its file, and behind a colon its variant: digits, "
    "configs/digits.py:tiny. --config.<key>=<value> changes it"
)

# Groups -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Which weights of a run's folder."""

    which: str = option("ema", "Weights to use: an EMA's name, or params")
    step: int | None = option(None, "Checkpoint to use; the newest by default", least=0)
    lora: tuple[str, ...] = option(
        (),
        "A LoRA to merge into the weights, and how strongly: x.safetensors=0.7; 1 by default; may "
        "be given again",
    )

    def __post_init__(self):
        check_options(self)
        strengths(self.lora)

    @property
    def loras(self) -> dict[str, float]:
        """The LoRAs with their strengths."""
        return strengths(self.lora)


@dataclass(frozen=True)
class Sampling:
    """How to sample; what is not given is as the page says, or as here."""

    # The fields of `Recipe` and of `Draw` that were given. Which of the two a run has is known when
    # it is opened, and only then what goes without saying.
    changes: Mapping[str, Any] = field(default_factory=dict)


def group(kind: type, without: Sequence[str] = ()) -> Any:
    """A field of Options that is a dataclass of options.

    Args:
      kind: the dataclass.
      without: those of its fields that the mode does not look at, and that are no flags of it.
    """
    return field(default_factory=kind, metadata={"without": tuple(without)})


@dataclass(frozen=True)
class Measuring:
    """The groups of a mode that measures a run's samples: `evaluate` once, `sweep` many times."""

    measure: measurement.Measure = group(measurement.Measure)
    features: measurement.Features = group(measurement.Features)
    weights: Weights = group(Weights)
    batch: Batch = group(Batch)
    helpers: Helpers = group(Helpers)
    sampling: Sampling = group(Sampling)

    def for_evaluation(self, swept: str = "") -> measurement.Options:
        """All that evaluation/ is asked; `swept` is the option that has other values to come."""
        return measurement.Options(
            self.measure, self.features, self.batch, self.helpers, self.sampling.changes, swept
        )


# Leaves -------------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """One flag.

    Attributes:
      group: the field of Options that holds it; '' where it is a field of Options itself.
      types: what its values may be, without None.
      default: None for what the page or the model says.
      help: a phrase.
    """

    group: str
    types: tuple[Any, ...]
    default: Any
    help: str


def leaves(kind: type, group: str = "", without: Sequence[str] = ()) -> dict[str, Leaf]:
    """The flags of a mode's Options, by name; those that it has of itself first.

    Args:
      kind: the Options, or a group of them.
      group: the field that holds it.
      without: fields that are no flags.
    """
    hints = get_type_hints(kind)
    flags = {}
    for part in fields(kind):
        if "help" in part.metadata and part.name not in without:
            types = _types(hints[part.name])
            flags[part.name] = Leaf(group, types, part.default, part.metadata["help"])
    # A mode's own flags first: `num` of sample, say, has another default than that of a group.
    for part in fields(kind):
        if is_dataclass(hints[part.name]):
            for source in _sources(hints[part.name]):
                flags |= leaves(source, part.name, (*part.metadata["without"], *flags))
    return flags


def _sources(kind: type) -> tuple[type, ...]:
    """The dataclasses whose fields are the flags of a group: for `Sampling` both recipes."""
    if kind is not Sampling:
        return (kind,)
    from diffusion_jax.pipelines.dalle import Draw  # not before: it imports the optimisers
    from diffusion_jax.pipelines.recipe import Recipe

    return Recipe, Draw


def _types(hint: Any) -> tuple[Any, ...]:
    """What an annotation lets a value be, without None."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(one for one in alternatives if one is not type(None))


def built(kind: type, values: Mapping[str, Any]) -> Any:
    """A mode's Options of flat leaves, {flag: value}; what is None or not there has its default.

    Raises:
      ConfigError: a flag that the mode does not have (which mode has it, or the nearest one), a
        number out of bounds, or what does not go together.
    """
    flags = leaves(kind)
    parts: dict[str, dict[str, Any]] = {"": {}}
    for name, value in values.items():
        if name not in flags:
            raise stranger(name, kind)
        if value is not None:
            # absl makes lists of flags that may be given again; frozen Options hold tuples.
            part = parts.setdefault(flags[name].group, {})
            part[name] = _value(name, value, flags[name].types)
    hints = get_type_hints(kind)
    groups = {name: _group_of(hints[name], part) for name, part in parts.items() if name}
    return kind(**parts[""], **groups)


def _value(name: str, value: Any, types: tuple[Any, ...]) -> Any:
    """A flag's value: what is a number and nothing else is read as one, here alone."""
    # A class or --steps may be a number or a name: who reads it can tell.
    if isinstance(value, str) and types in ((int,), (float,)):
        return number(name, value, integer=types == (int,))
    return tuple(value) if isinstance(value, list) else value


def _group_of(kind: type, values: Mapping[str, Any]) -> Any:
    """A group of the options that were given."""
    # Of `Sampling` they are changes: a default of its own would hide what the page says.
    return Sampling(values) if kind is Sampling else kind(**values)


def stranger(name: str, kind: type) -> ConfigError:
    """The error for a flag that a mode's Options lack: which modes have it, or the nearest flag."""
    mode = kind.__module__.rpartition(".")[2]
    if name.partition(".")[0] == "config":
        return ConfigError(f"mode {mode} reads no page: leave --config out")
    # All modes are imported only here, where the command ends anyway: that takes a second.
    flags = {each: leaves(module_of(each).Options) for each in MODES}
    owners = [each for each in MODES if name in flags[each]]
    if not owners:
        return unknown(f"flag of mode {mode}", name, flags[mode])
    of_page = "what a run is, its page says (--config.<key>=<value>)"
    reason = of_page if mode == "train" else f"mode {mode} has no use for it"
    modes = ("mode " if len(owners) == 1 else "modes ") + ", ".join(owners)
    return ConfigError(f"--{name} belongs to {modes}: {reason}")


def described(kind: type) -> str:
    """The flags of a dataclass for --help, group by group, with their defaults."""
    hints = get_type_hints(kind)
    tables: dict[str, list[str]] = {}
    for name, leaf in leaves(kind).items():
        title = str((hints[leaf.group] if leaf.group else kind).__doc__).partition("\n")[0]
        tables.setdefault(title, []).append(_entry(name, leaf))
    return "\n\n".join("\n".join([title, *lines]) for title, lines in tables.items())


def _entry(name: str, leaf: Leaf) -> str:
    """A flag, its help, whose lines stay lines, and its default where that says something."""
    default = ", ".join(leaf.default) if isinstance(leaf.default, tuple) else str(leaf.default)
    behind = "" if default in ("", "None", "False") else f" (default: {default})"
    lines = f"--{name}: {leaf.help}{behind}".splitlines()
    wrap = textwrap.TextWrapper(100, "  ", "      ", break_on_hyphens=False)
    return "\n".join(map(wrap.fill, lines))
