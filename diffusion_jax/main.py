"""The command line.

    python -m diffusion_jax.main --config configs/digits.py --workdir runs/digits --mode train

`--mode` is read first, and that mode alone is imported: the leaves of its Options are the flags
(modes/options.py).
"""
from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports take a second, in which nothing is written. `run` then hands over to train/stop.py.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130 if os.write(2, b"stopped by Ctrl-C\n") else 1))

from absl import flags

from diffusion_jax.build import ALLOW, ConfigError, allow, option
from diffusion_jax.modes import DEFAULT, MODES, WITHOUT_FOLDER, module_of
from diffusion_jax.modes.options import built, described, leaves, stranger
from diffusion_jax.runs import pages
from diffusion_jax.train import process, stop

HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull", "-?"}
OF_ABSL = ("verbosity", "logtostderr", "alsologtostderr", "stderrthreshold")
MULTIPLE = {tuple[str, ...], Sequence[str], Sequence[int | str]}


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
        "for none. By default diffusion_jax/compiled in your own cache folder (XDG_CACHE_HOME, "
        "~/.cache)",
    )
    allow: tuple[str, ...] = option(
        (),
        "A package of your own that pages and checkpoints may name, and whose code then runs; may "
        f"be given again, or in the environment: {ALLOW}=mypkg,other",
    )

    def __post_init__(self):
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
    with contextlib.ExitStack() as ends:
        # Training goes on where it stopped: there a signal is no failure.
        if mode == DEFAULT:
            ends.enter_context(stop.resumable())
        # Both must precede the first computation, which starts JAX's backends for good.
        if start.distributed:
            process.join()
            ends.enter_context(stop.together())
            # JAX has taken SIGTERM, which a training loop asks it about.
            if mode != DEFAULT:
                stop.retake()
        process.keep_compiled(start.compiled)
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

    What they allow is allowed from here on.

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
    # Before a page is read and Options are built, which may name what is allowed.
    allow(*(values["allow"].value or ()))
    of_mode = {name: values[name].value for name in leaves(kind)}
    if "config" in of_mode:
        of_mode["config"], rest = pages.changed(of_mode["config"], rest)
    unread = rest[1:]
    if unread and not unread[0].startswith("-"):
        raise ConfigError(f"unexpected argument {unread[0]!r}: flags begin with --")
    if unread:
        raise stranger(unread[0].lstrip("-").partition("=")[0], kind)
    start = built(Start, {name: values[name].value for name in leaves(Start)})
    check_folder(kind.__module__.rpartition(".")[2], start.workdir)
    return start, built(kind, of_mode)


def check_folder(mode: str, workdir: str) -> None:
    """Raises ConfigError for a mode without the folder that it needs, or with one."""
    if mode in WITHOUT_FOLDER and workdir:
        raise ConfigError(f"mode {mode} reads and makes no run: leave --workdir out")
    if mode not in WITHOUT_FOLDER and not workdir:
        raise ConfigError("give --workdir, the run's folder")


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
        # Numbers too are text as yet: absl takes '1_0' and other alphabets' digits for numbers.
        flags.DEFINE(flags.ArgumentParser(), name, None, "", flag_values=values)


def help_of(mode: str, module: Any) -> str:
    """What a mode does, its flags and their defaults, and the other modes."""
    folder = "" if mode in WITHOUT_FOLDER else "--workdir FOLDER "
    usage = f"Usage: python -m diffusion_jax --mode {mode} {folder}[flags]"
    others = ", ".join(other for other in MODES if other != mode)
    tables = f"{described(module.Options)}\n\n{described(Start)}"
    return f"{module.__doc__}\n{usage}\n\n{tables}\n\nOther modes, each with a --help: {others}"


def guarded(argv: Sequence[str]) -> None:
    """`main`; what the user can mend becomes one line on stderr and exit code 2, a signal one line
    and the code that shells give it."""
    try:
        main(argv)
    except (ConfigError, OSError, flags.Error, KeyboardInterrupt) as error:
        says, code = stop.reason(error)
        print(says, file=sys.stderr)
        sys.exit(code)


def run() -> None:
    """The program."""
    process.log()
    stop.heed()
    try:
        guarded(sys.argv)
    except BaseException as error:
        stop.end(error)


if __name__ == "__main__":
    run()
