"""What this folder's tests share: one small run trained in-process, the command line in-process, and quick compilation."""
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits.py"


def tiny():
    """A fresh configs/digits.py:tiny."""
    spec = importlib.util.spec_from_file_location("digits_page", DIGITS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("tiny")


@pytest.fixture(name="tiny")
def tiny_page():
    """A fresh configs/digits.py:tiny, to change and to train."""
    return tiny()


@pytest.fixture(scope="package", autouse=True)
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """The folder of a whole run: configs/digits.py:tiny to its end. Copy it before you change it."""
    from diffusion_jax.modes import train

    folder = tmp_path_factory.mktemp("runs") / "digits"
    train.run(tiny(), str(folder), {})
    return folder


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys):
    """`python -m diffusion_jax.main` in this process: cli('--mode', 'sample', ...) -> Result."""
    from diffusion_jax import main

    def command(*arguments: str) -> Result:
        argv = ["main", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)                     # where ml_collections looks for overrides
        capsys.readouterr()
        code = 0
        with flagsaver.flagsaver():
            try:
                main.guarded(main.parse(argv))
            except SystemExit as end:
                code = end.code or 0
            flags.FLAGS.unparse_flags()
        return Result(code, *capsys.readouterr())

    return command


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def files():
    """`snapshot`, for before and after."""
    return snapshot
