"""From what `--config` says to a page: `configs/digits.py:tiny`, `digits:tiny`, one's own file.

A page is a Python file with a function `get_config`; what stands behind the first colon is its
argument. The pages of configs/ are installed beside the package, so their names do from any folder.
"""
from __future__ import annotations

import difflib
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

from diffusion_jax.build import ConfigError

PACKAGE = Path(__file__).parent.parent
FOLDERS = (PACKAGE / "pages", PACKAGE.parent / "configs")
"""Where the pages are: installed (setup.py), and in a source tree."""


def changed(text: str | None, argv: list[str]) -> tuple[ConfigDict | None, list[str]]:
    """A page with what the command line changes in it.

    Args:
      text: see `read`; None where the command line names none.
      argv: the command line, the program's name first; of it `--config.<key>=<value>` is used.

    Returns:
      (the page, None without one; what is left of the command line).

    Raises:
      ConfigError: no page, one that does not read, or a value of another type than the page's.
    """
    if text is None:
        if any(argument.startswith(("-config.", "--config.")) for argument in argv):
            raise ConfigError("--config.<key>=<value> changes a page: give --config too")
        return None, argv
    page = read(text)
    values = flags.FlagValues()
    values.set_gnu_getopt()
    try:
        # Keys may be new, for pages leave out what is optional; runs/page.py checks them all.
        config_flags.DEFINE_config_dict(
            "config",
            page,
            flag_values=values,
            lock_config=False,
            accept_new_attributes=True,
            sys_argv=argv,
        )
        rest = values(argv, known_only=True)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--config.<key>=<value>: {error}") from None
    return cast(ConfigDict, values["config"].value), rest


def read(text: str) -> ConfigDict:
    """The page that `text` names.

    Args:
      text: a file, or the name of a page of configs/; perhaps a colon and an argument.

    Raises:
      ConfigError: there is no such page, or it fails: then its own traceback was printed.
    """
    name, colon, argument = text.partition(":")
    file = find(name)
    try:
        get_config = _module(file).get_config
        page = get_config(argument) if colon else get_config()
    except ConfigError:
        raise
    except Exception as error:  # a page is the user's code, which may raise anything
        frames = _inside(error.__traceback__, file)
        traceback.print_exception(type(error), error, frames, chain=False)
        where = _line(error, frames, file)
        raise ConfigError(f"the page {where} fails: {type(error).__name__}: {error}") from None
    if not isinstance(page, (ConfigDict, dict)):
        raise ConfigError(
            f"get_config of {file} returns {type(page).__name__}: it is to return a ConfigDict"
        )
    return page if isinstance(page, ConfigDict) else ConfigDict(page)


def find(name: str) -> Path:
    """The file of a page.

    Raises:
      ConfigError: there is none; names the nearest page of configs/, and all of them.
    """
    file = Path(name).expanduser()
    if file.is_file():
        _check_text(file)
        return file
    if file.is_dir():
        raise ConfigError(f"{name!r} is a folder: a page is a Python file with get_config")
    pages = installed()
    # 'digits', 'digits.py' and 'configs/digits.py', as READMEs write it, from any folder.
    if (
        file.parent in (Path("."), Path("configs"))
        and file.stem in pages
        and file.suffix in ("", ".py")
    ):
        return pages[file.stem]
    near = difflib.get_close_matches(file.stem, pages, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"there is no page {name!r}: {hint}pages are files, or one of {', '.join(pages)}"
    )


def installed() -> dict[str, Path]:
    """The pages that come with the package, by name."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
    return {file.stem: file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"}


def _check_text(file: Path) -> None:
    """Raises ConfigError for a file that is no Python: pictures, arrays, weights."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError:
        text = "\0"
    if file.suffix not in ("", ".py") or "\0" in text:
        raise ConfigError(f"{file} is no page: a page is a Python file with get_config")


def _module(file: Path) -> Any:
    # Not an import: a page may lie outside sys.path and have the name of an installed package.
    loader = SourceFileLoader("config_page", str(file))
    module = ModuleType(loader.name)
    module.__file__ = str(file)  # pages find their neighbours by it
    sys.modules[loader.name] = module  # dataclasses of a page look for their module
    loader.exec_module(module)
    return module


def _inside(frames: TracebackType | None, file: Path) -> TracebackType | None:
    """The part of a traceback from the page on; None where the page does not even compile."""
    # Above it are only our own frames, which tell the author of a page nothing.
    while frames is not None and frames.tb_frame.f_code.co_filename != str(file):
        frames = frames.tb_next
    return frames


def _line(error: Exception, frames: TracebackType | None, file: Path) -> str:
    """'page.py:12', the line of the page that fails; the file alone where none of it ran."""
    line = None
    if isinstance(error, SyntaxError) and error.filename == str(file):
        line = error.lineno
    while frames is not None:
        if frames.tb_frame.f_code.co_filename == str(file):
            line = frames.tb_lineno
        frames = frames.tb_next
    return str(file) if line is None else f"{file}:{line}"
