"""From what `--config` says to a page: `configs/digits.py:tiny`, `digits:tiny`, one's own file.

A page is a Python file with a function `get_config`; what stands behind the first colon is its
argument. The pages of configs/ are installed beside the package, so their names do from any folder.

    def get_config(arg="", size=None):          configs/folder.py for example

What follows the argument are keywords: `--config.size=32` gives get_config one, and is no key of
the page.
"""
from __future__ import annotations

import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

from diffusion_jax.build import ConfigError, number, unknown

PACKAGE = Path(__file__).parent.parent
FOLDERS = (PACKAGE / "pages", PACKAGE.parent / "configs")
"""Where the pages are: installed (setup.py), and in a source tree."""
_CHANGE = re.compile(r"--?config\.(\w+)(?:=(.*))?", re.DOTALL)
"""An argument that changes what stands at the top of a page."""
_PART = re.compile(r"--?config\.(\w+)\.\w")
"""The beginning of one that changes a part of a section."""


class Opened(NamedTuple):
    """A page before it is made.

    Attributes:
      file: where it is.
      get_config: its function.
      arguments: what stands behind the colon; () without one.
    """

    file: Path
    get_config: Callable[..., Any]
    arguments: tuple[str, ...]

    @property
    def keywords(self) -> tuple[str, ...]:
        """The parameters of get_config behind the first, which is the argument."""
        names = inspect.signature(self.get_config).parameters
        return tuple(names)[1:]


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
    opened = _opened(text)
    keywords, argv = _keywords_of(opened, argv)
    page = _made(opened, keywords)
    _add_sections(page, argv)
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


def read(text: str, **keywords: Any) -> ConfigDict:
    """The page that `text` names.

    Args:
      text: a file, or the name of a page of configs/; perhaps a colon and an argument.
      **keywords: what else its get_config takes.

    Raises:
      ConfigError: there is no such page, or it fails: then its own traceback was printed.
    """
    return _made(_opened(text), keywords)


def _opened(text: str) -> Opened:
    """The page that `text` names, its file run; raises as `read` does."""
    name, colon, argument = text.partition(":")
    file = find(name)
    get_config = _guarded(file, lambda: _module(file).get_config)
    return Opened(file, get_config, (argument,) if colon else ())


def _made(opened: Opened, keywords: Mapping[str, Any]) -> ConfigDict:
    """What a page's get_config returns; raises as `read` does."""
    file = opened.file
    page = _guarded(file, lambda: opened.get_config(*opened.arguments, **keywords))
    if not isinstance(page, (ConfigDict, dict)):
        raise ConfigError(
            f"get_config of {file} returns {type(page).__name__}: it is to return a ConfigDict"
        )
    return page if isinstance(page, ConfigDict) else ConfigDict(page)


def _guarded(file: Path, act: Callable[[], Any]) -> Any:
    """What `act` returns, which runs a page's own code; raises as `read` does."""
    try:
        return act()
    except ConfigError:
        raise
    except Exception as error:  # a page is the user's code, which may raise anything
        frames = _inside(error.__traceback__, file)
        traceback.print_exception(type(error), error, frames, chain=False)
        where = _line(error, frames, file)
        raise ConfigError(f"the page {where} fails: {type(error).__name__}: {error}") from None


def _keywords_of(opened: Opened, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(the keywords of get_config on a command line, what is left of that).

    Raises:
      ConfigError: one without a value; of a page that takes keywords, a name that is nearly one.
    """
    names = opened.keywords
    keywords: dict[str, Any] = {}
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        change = _CHANGE.fullmatch(argument)
        name, value = change.groups() if change else ("", None)
        if name not in names:
            if name and difflib.get_close_matches(name, names) and not _is_section(name):
                raise unknown("keyword of this page", name, names)
            rest.append(argument)
            continue
        if value is None:
            value = next(arguments, None)
        if value is None:
            raise ConfigError(f"--config.{name} has no value: write --config.{name}=<value>")
        keywords[name] = _value(name, value)
    return keywords, rest


def _add_sections(page: ConfigDict, argv: Sequence[str]) -> None:
    """Adds to a page, empty, the optional sections of which a command line has a part:
    `--config.validate.every=500` is enough of one."""
    for argument in argv:
        name = _PART.match(argument)
        if name and name[1] not in page and _is_optional(name[1]):
            with page.unlocked():
                page[name[1]] = ConfigDict()


def _is_optional(name: str) -> bool:
    """Whether pages may have such a section, of known parts or, as `init`, of parts of a network."""
    from diffusion_jax.runs.page import OPTIONAL, PARTS  # not before: it imports JAX

    return name in OPTIONAL and (name in PARTS or name == "init")


def _is_section(name: str) -> bool:
    """Whether pages have such a section."""
    from diffusion_jax.runs.page import SECTIONS  # not before: it imports JAX

    return name in SECTIONS


def _value(name: str, text: str) -> int | float | str:
    """A keyword's value: the number that a text spells, or the text."""
    for integer in (True, False):
        try:
            return number(name, text, integer=integer)
        except ConfigError:
            continue
    return text


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
