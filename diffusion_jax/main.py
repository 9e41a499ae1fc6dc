"""The command line.

    python -m diffusion_jax.main --config configs/digits.py --workdir runs/digits --mode train

`--mode` is read first, and that mode alone is imported: the leaves of its Options are the flags
(modes/options.py).
"""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags

from diffusion_jax.build import ConfigError, option
from diffusion_jax.modes import DEFAULT, MODES, module_of
from diffusion_jax.modes.options import built, described, leaves, stranger
from diffusion_jax.runs import pages
from diffusion_jax.train import process

HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull", "-?"}
OF_ABSL = ("verbosity", "logtostderr", "alsologtostderr", "stderrthreshold")
MULTIPLE = {tuple[str, ...], Sequence[str]}
PARSERS = {(int,): flags.IntegerParser, (float,): flags.FloatParser}


@dataclass(frozen=True)
class Start:
    """Of every mode."""

    workdir: str = option("", "The run's folder: checkpoints, metrics, samples, report")
    distributed: bool = option(
        False,
        "Join the other processes of the cluster first. Where JAX cannot find them (it does on TPU "
        "pods and in Slurm), set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID in the environment",
    )
    compiled: str | None = option(
        None,
        "Folder in which compiled programs are kept, so that a second start compiles nothing; '' "
        "for none. By default '.compiled' beside the workdir",
    )

    def __post_init__(self):
        if not self.workdir:
            raise ConfigError("give --workdir, the run's folder")
        if "://" in self.workdir:
            mount = "mount it with gcsfuse or Filestore and give the mount point"
            raise ConfigError(f"--workdir {self.workdir} is no folder: {mount}")


def main(argv: Sequence[str]) -> None:
    """Runs one mode; raises `ConfigError` and `OSError` for what the user can mend."""
    mode, rest = first(argv)
    module = module_of(mode)
    # Before anything is parsed: who asks for help may not know what else the mode needs.
    if HELP & set(argv):
        print(help_of(mode, module))
        return
    start, options = parsed(module.Options, rest)
    # Both must precede the first computation, which starts JAX's backends for good.
    if start.distributed:
        process.join()
    process.keep_compiled(start.compiled, start.workdir)
    module.run(options, os.path.expanduser(start.workdir))


def first(argv: Sequence[str]) -> tuple[str, list[str]]:
    """(the mode, the other arguments with the program's name before them)."""
    values = flags.FlagValues()
    values.set_gnu_getopt()  # flags may stand behind values that belong to a flag not yet known
    flags.DEFINE_enum("mode", DEFAULT, MODES, "", flag_values=values)
    rest = values(argv, known_only=True)
    return values.mode, rest


def parsed(kind: type, argv: Sequence[str]) -> tuple[Start, Any]:
    """(what every mode has, the mode's own Options) of the arguments that `first` leaves.

    Raises:
      ConfigError: what is no flag of this mode, or has no such value, or does not go together.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt()
    for name, leaf in (leaves(Start) | leaves(kind)).items():
        define(values, name, leaf.types)
    for name in OF_ABSL:
        values[name] = flags.FLAGS[name]
    # What is unknown so far may be --config.<key>=<value>, which the page itself defines.
    rest = values(argv, known_only=True)
    of_mode = {name: values[name].value for name in leaves(kind)}
    if "config" in of_mode:
        of_mode["config"], rest = pages.changed(of_mode["config"], rest)
    unread = rest[1:]
    if unread and not unread[0].startswith("-"):
        raise ConfigError(f"unexpected argument {unread[0]!r}: flags begin with --")
    if unread:
        raise stranger(unread[0].lstrip("-").partition("=")[0], kind)
    start = built(Start, {name: values[name].value for name in leaves(Start)})
    return start, built(kind, of_mode)


def define(values: flags.FlagValues, name: str, types: tuple[Any, ...]) -> None:
    """Makes the flag of a leaf.

    Its default is None, not the field's: Options tell what was given from what was not. Its bounds
    are checked where Options are built, so that Python and the command line refuse the same.
    """
    if bool in types:
        flags.DEFINE_bool(name, None, "", flag_values=values)
    elif MULTIPLE & set(types):
        flags.DEFINE_multi_string(name, None, "", flag_values=values)
    else:
        # What may be a number or a name, a class or --steps, stays text: who reads it can tell.
        flags.DEFINE(PARSERS.get(types, flags.ArgumentParser)(), name, None, "", flag_values=values)


def help_of(mode: str, module: Any) -> str:
    """What a mode does, its flags and their defaults, and the other modes."""
    usage = f"Usage: python -m diffusion_jax --mode {mode} --workdir FOLDER [flags]"
    others = ", ".join(other for other in MODES if other != mode)
    tables = f"{described(module.Options)}\n\n{described(Start)}"
    return f"{module.__doc__}\n{usage}\n\n{tables}\n\nOther modes, each with a --help: {others}"


def guarded(argv: Sequence[str]) -> None:
    """`main`; what the user can mend becomes one line on stderr and exit code 2."""
    try:
        main(argv)
    except (ConfigError, OSError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def run() -> None:
    """The program."""
    process.log()
    guarded(sys.argv)


if __name__ == "__main__":
    run()
