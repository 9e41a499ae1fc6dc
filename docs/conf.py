"""Configuration of the documentation: Sphinx with MyST notebooks, all of which are executed in the build.

    pip install -e '.[docs]'
    sphinx-build -W -n -b html docs site

One run is trained before the pages are read, `TRAIN`, and stays in the folder of the build; pages with cells stand in that folder
while they are executed. Nothing comes from the network.
"""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import docstrings  # noqa: E402

import diffusion_jax  # noqa: E402

project = "diffusion_jax"
author = "the authors of diffusion_jax"
copyright = f"2026, {author}"
release = version = diffusion_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
highlight_language = "none"
nitpicky = True
# Types of other packages have no page here, and their pages are on the network; every name of ours must resolve.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!diffusion_jax\.).*"),
    (r"py:.*", r"diffusion_jax\.(\w+\.)*(_\w+|[A-Z])"),                                  # what is private, and type variables
]
# A bare name in a signature that several modules have ("Options") is no link.
suppress_warnings = ["ref.python"]

# Pages and notebooks -----------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True
nb_render_markdown_format = "gfm"

# Reference ---------------------------------------------------------------------------------------------------------------------

autodoc_default_options = {"members": True, "member-order": "bysource", "special-members": "__call__"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 100
add_module_names = False
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "code"
ALIASES = ("Cond", "Raw", "Network", "Noise", "Denoiser")
# Of these the name says all: they have no docstring, and no link.
PLAIN = ("Array", "Key", "Params", "State", "Metrics", "Memory", "Guidance")
autodoc_type_aliases = {name: f"diffusion_jax.types.{name}" for name in ALIASES} | {name: name for name in PLAIN}

# Looks -------------------------------------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = "diffusion_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2, "home_page_in_toc": True,
    "navbar_persistent": [],
}

# The run of the pages ----------------------------------------------------------------------------------------------------------

TRAIN = (
    "--config", "digits", "--workdir", "runs/digits", "--config.steps=300", "--config.optim.steps=300",
    "--config.evaluate.num=200", "--config.checkpoint.every=100",
)
"""The quick start in a third of its steps. What was trained is not trained again: the command goes on where the folder is."""


def train(app: Sphinx) -> None:
    """Trains the run that pages open as runs/digits, and says to their kernels where they stand (DOCS_HOME)."""
    home = Path(app.doctreedir) / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["DOCS_HOME"] = str(home)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])          # of commands in cells
    if app.builder.format != "html" or app.config.nb_execution_mode == "off":
        return
    command = [sys.executable, "-m", "diffusion_jax.main", *TRAIN]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ExtensionError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    log = home / "digits.log"
    if not log.exists():
        log.write_text(done.stdout)


# Pages as Sphinx reads them ----------------------------------------------------------------------------------------------------

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")
"""A link to a file of the repository that is no page: on GitHub it is one, on the site its name stands alone."""
ROOM = re.compile(r"^\{room\} (\S+)$", re.MULTILINE)


def prepared(app: Sphinx, page: str, source: list[str]) -> None:
    """Takes away links that leave docs/, and puts the modules of a room where a page of reference/ names one."""
    text = source[0]
    if page == "index" and not list(HERE.glob("studio*.md")):                           # the page in the browser has one, or not
        text = text.replace("\nstudio*", "")
    if page.startswith("reference/"):
        text = ROOM.sub(lambda match: modules(match[1]), text)
    source[0] = text if "/" in page else OUTSIDE.sub(r"\1", text)


def modules(room: str) -> str:
    """The modules of a folder of the package, or one module, as a page of the reference has them."""
    package = Path(diffusion_jax.__file__).parent
    files = sorted((package / room).glob("*.py")) if (package / room).is_dir() else [package / f"{room}.py"]
    names = [".".join(file.relative_to(package.parent).with_suffix("").parts) for file in files if file.stem[0] != "_"]
    return "\n".join(f"## {name.partition('.')[2]}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n" for name in names)


def skipped(app: Sphinx, what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Fields of named tuples are in their docstring, under "Attributes"; and what flax adds to its modules says nothing."""
    return True if type(value).__name__ == "_tuplegetter" or (what == "class" and docstrings.is_inherited(value)) else None


FLAX = re.compile(r"(, )?parent: .*, name: str \| None = None")


def signed(app: Sphinx, what: str, name: str, value: object, options: object, signature: str | None,
           returns: str | None) -> tuple[str, str | None] | None:
    """A signature without what flax adds to every module."""
    return None if signature is None else (FLAX.sub("", signature), returns)


def setup(app: Sphinx) -> None:
    """Connects the above."""
    app.connect("builder-inited", train)
    app.connect("source-read", prepared)
    app.connect("autodoc-skip-member", skipped)
    app.connect("autodoc-process-signature", signed)
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)          # before napoleon, which has 500
