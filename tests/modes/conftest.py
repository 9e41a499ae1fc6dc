"""What this folder's tests share: one small run trained in-process, the command line in-process, and quick compilation."""
import sys

import pytest
from absl import flags
from absl.testing import flagsaver
from compiling import compiled_once
from pages import Result, page


@pytest.fixture(scope="package", autouse=True)
def compile_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a whole run: configs/digits.py:tiny to its end. Copy it before you change it."""
    from diffusion_jax.modes import train

    folder = tmp_path_factory.mktemp("runs") / "digits"
    train.run(page("digits"), str(folder), {})
    return folder


@pytest.fixture
def cli(monkeypatch, capsys):
    """`python -m diffusion_jax.main` without the cost of a new process: cli('--mode', 'sample', ...) -> Result."""
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
