"""What this folder's tests share: small runs trained in-process, the command line in-process, a cheap feature network."""
import pytest
from compiling import compiled_once
from filelock import FileLock
from pages import Result, ask, page
from stubs import digit_files, stub_network, with_stub

from diffusion_jax.evaluation import features


@pytest.fixture(scope="package", autouse=True)
def compile_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, worker_id):
    """The folder of a whole run: configs/digits.py:tiny to its end, one for all workers. Copy it before you change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny_run" / "digits"
    with FileLock(f"{folder.parent}.lock"):
        if not folder.with_name("trained").exists():
            ask("train", folder, config=page("digits"))
            folder.with_name("trained").touch()
    return folder


@pytest.fixture(scope="session")
def token_runs(tmp_path_factory):
    """The folder of digits_dvae:tiny and of digits_dalle:tiny on it."""
    root = tmp_path_factory.mktemp("tokens")
    ask("train", root / "digits_dvae", config=page("digits_dvae"))
    ask("train", root / "digits_dalle", config=page("digits_dalle", first_stage=str(root / "digits_dvae")))
    return root


@pytest.fixture
def stub(monkeypatch):
    """A cheap network in place of the published ones, under the name 'stub'."""
    monkeypatch.setattr(features, "network_of", with_stub(features.network_of, stub_network()))
    monkeypatch.setattr(features, "named", with_stub(features.named, ("", "stub")))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folders of classes, and an .npz, of the first digits."""
    return digit_files(tmp_path_factory.mktemp("digits"))


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
