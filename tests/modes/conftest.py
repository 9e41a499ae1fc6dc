"""What this folder's tests share: one small run trained in-process, the command line in-process, and quick compilation."""
import pytest
from compiling import compiled_once
from pages import Result, ask, page


@pytest.fixture(scope="package", autouse=True)
def compile_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a whole run: configs/digits.py:tiny to its end. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    ask("train", folder, config=page("digits"))
    return folder


@pytest.fixture
def cli(capsys):
    """`python -m diffusion_jax.main` without the cost of a new process: cli('--mode', 'sample', ...) -> Result."""
    from diffusion_jax import main

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        code = 0
        try:
            main.guarded(["main", *map(str, arguments)])
        except SystemExit as end:
            code = end.code or 0
        return Result(code, *capsys.readouterr())

    return command
