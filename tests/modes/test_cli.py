"""The command line: one line of error, an exit code that is not 0, and nothing lost."""
import shutil
import signal

import numpy as np
import pytest
from pages import ROOT, files, refused
from PIL import Image

from diffusion_jax.modes import module_of
from diffusion_jax.parts import BOUNDS
from diffusion_jax.train.checkpoint import available
from diffusion_jax.train.stop import Stopped

DIGITS = f"{ROOT / 'configs' / 'digits.py'}:tiny"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--workdir", "run"), "--config configs/"),
        (("--workdir", "run", "--mode", "plan"), "mode plan needs --config configs/"),
        (("--config", DIGITS, "--workdir", "gs://bucket/run"), "mount it with gcsfuse or Filestore and give the mount point"),
        (("--config", DIGITS), "--workdir"),
        (("--config", "no_such_page.py", "--workdir", "run"), "no_such_page.py"),
        (("--config", DIGITS, "--workdir", "run", "--config.stpes=3"), "did you mean 'steps'"),
        (("--config", DIGITS, "--workdir", "run", "--config.steps=many"), "many"),
        (("--config", DIGITS, "--workdir", "run", "--track", "wnadb"), "unknown tracker 'wnadb': did you mean 'wandb'"),
        (("--config", DIGITS, "--workdir", "run", "--config.task.scale.name=os:system"), "of which configs name nothing"),
        (("--config", DIGITS, "--workdir", "run", "--steps", "100"), "--steps belongs to modes edit, evaluate, sample, sweep"),
        (("--workdir", "run", "--mode", "smaple"), "train|edit|encode"),
        (("--workdir", "run", "--mode", "sample"), "there is no folder"),
        (("--workdir", "run", "--mode", "sample", "--out", "x.jpg"), "end it in .png"),
        (("--workdir", "run", "--mode", "sample", "--num", "0"), "num"),
        (("--workdir", "run", "--mode", "sample", "--seed", "-1"), "seed is 0 ... 4294967295, got -1"),
        (("--workdir", "run", "--mode", "sample", "--labl", "1"), "did you mean 'label'"),
        (("--workdir", "run", "--mode", "sample", "extra"), "unexpected argument 'extra'"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_mistakes_on_the_command_line(cli, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments)
    assert refused(result, says), result.err
    assert not files(tmp_path)


def test_the_flags_reach_the_modes(cli, tiny_run, tmp_path):
    result = cli("--workdir", tiny_run, "--mode", "sample", "--num", 6, "--label", 3, "--sampler", "ddim,eta=0.5", "--steps", 3,
                 "--guidance", 3.0, "--cads", "s=0.1", "--clip", 1, "--seed", 7, "--out", tmp_path / "x.npz")
    assert result.code == 0 and "6 samples" in result.out, result.err
    found = np.load(tmp_path / "x.npz")
    assert found["arr_0"].shape == (6, 8, 8, 1) and (found["arr_1"] == 3).all()


PAGE = """
import runpy

def get_config():
    config = runpy.run_path({digits!r})['get_config']('tiny')
    {change}
    return config
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("config.data.train.rows = {1, 2}", "a config holds JSON only"),
        ("config.learning_rte = 1e-3", "unknown config key 'learning_rte'"),
        ("config.checkpoint.evry = 3", "did you mean 'checkpoint.every'"),
    ],
)
def test_mistakes_in_a_page(cli, tmp_path, change, says):
    (tmp_path / "page.py").write_text(PAGE.format(digits=str(ROOT / "configs" / "digits.py"), change=change))
    result = cli("--config", tmp_path / "page.py", "--workdir", tmp_path / "run")
    assert refused(result, says), result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("config.model = 3 + 'x'", "TypeError: unsupported operand"),
        ("config.steps = config.stpes", "AttributeError"),
        ("config.steps = (3", "SyntaxError"),
        ("config.seed = open('no such file').read()", "FileNotFoundError"),
    ],
)
def test_a_page_that_fails_shows_where(cli, tmp_path, change, says):
    (tmp_path / "page.py").write_text(PAGE.format(digits=str(ROOT / "configs" / "digits.py"), change=change))
    result = cli("--config", tmp_path / "page.py", "--workdir", tmp_path / "run")
    last = result.err.splitlines()[-1]
    assert result.code == 2 and last.startswith(f"error: the page {tmp_path / 'page.py'}:6 fails: ") and says in last
    frames = [line for line in result.err.splitlines() if line.startswith("  File")]
    assert frames[0].startswith(f'  File "{tmp_path / "page.py"}", line 6')
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--mode", "sample", "--label", "-1"), "label -1 is outside 0 ... 9"),
        (("--mode", "sample", "--label", "three"), "unknown class 'three'"),
        (("--mode", "sample", "--label", "10"), "label 10 is outside 0 ... 9"),
        (("--mode", "sample", "--sampler", "ddmi"), "did you mean 'ddim'"),
        (("--mode", "sample", "--which", "emma"), "did you mean 'ema'"),
        (("--mode", "evaluate", "--out", "x.png"), "--out belongs to modes edit, encode, "),
        (("--config", DIGITS, "--config.model.depth=2"), "model.depth: 1 in the folder, 2 asked"),
        (("--config", DIGITS, "--config.seed=1"), "another config (seed: 0 in the folder, 1 asked): choose another workdir"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_mistakes_about_a_run_leave_it_as_it_was(cli, tiny_run, arguments, says):
    before = files(tiny_run)
    result = cli("--workdir", tiny_run, *arguments)
    assert refused(result, says), result.err
    assert files(tiny_run) == before


def test_damaged_checkpoints_are_named_and_kept(cli, tiny_run, tmp_path):
    damaged = shutil.copytree(tiny_run, tmp_path / "run")
    for path in (damaged / "checkpoints").rglob("*"):
        if path.is_file() and "state" in path.parts and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:1000])
    before = files(damaged)
    for arguments, says in ((("--mode", "sample"), "checkpoint of step 4"), (("--mode", "sample", "--step", "2"), "step 2"),
                            (("--config", DIGITS), "none of the checkpoints")):
        result = cli("--workdir", damaged, *arguments)
        assert refused(result, says), result.err
        assert files(damaged) == before


def test_a_workdir_that_is_a_file_is_refused_and_kept(cli, tmp_path):
    (tmp_path / "run").write_text("mine")
    assert refused(cli("--config", DIGITS, "--workdir", tmp_path / "run"), "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_corrupt_image_is_named(cli, tmp_path):
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "data" / label / f"{i}.png")
    broken = tmp_path / "data" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    before = files(tmp_path)
    folder = f"config.data.train = dict(name='diffusion_jax.data.folder:Folder', path={str(tmp_path / 'data')!r})"
    (tmp_path / "page.py").write_text(PAGE.format(digits=str(ROOT / "configs" / "digits.py"), change=folder))
    result = cli("--config", tmp_path / "page.py", "--workdir", tmp_path / "run", "--config.evaluate.num=0")
    assert refused(result, "b/3.png: cannot read this image"), result.err
    assert {name: files(tmp_path)[name] for name in before} == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(BOUNDS, "lr", (0, None))                          # a page may not ask for what this needs
    run = tmp_path / "run"
    arguments = ("--config", DIGITS, "--workdir", run, "--config.optim.lr=1e30", "--config.checkpoint.every=1")
    for _ in range(2):                                                    # the second goes on from step 1, to the same end
        result = cli(*arguments)
        assert refused(result, "at step 2, stopped; the last good checkpoint is step 1"), result.err
        assert available(run) == [1]                                      # where the rate was still 0
        assert [line.split(",")[0] for line in (run / "metrics.jsonl").read_text().splitlines()] == ['{"step": 1']


@pytest.mark.parametrize(("mode", "error", "code", "says"), [
    ("sample", KeyboardInterrupt(), 130, "stopped by Ctrl-C"), ("evaluate", Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
    ("encode", Stopped(signal.SIGHUP), 129, "stopped by SIGHUP"),
    ("train", Stopped(signal.SIGINT), 130, "stopped by Ctrl-C: run the same command to go on"),
    ("train", Stopped(signal.SIGTERM), 0, "stopped by SIGTERM: run the same command to go on"),
    ("train", Stopped(signal.SIGHUP), 0, "stopped by SIGHUP: run the same command to go on"),
])
def test_a_signal_is_one_line_in_every_mode(cli, tmp_path, monkeypatch, mode, error, code, says):
    def stops(*_):
        raise error

    monkeypatch.setattr(module_of(mode), "run", stops)
    options = {"train": ("--config", "digits:tiny"), "encode": ("--out", tmp_path / "out")}.get(mode, ())
    done = cli("--mode", mode, "--workdir", tmp_path / "run", *options)
    assert (done.code, done.err) == (code, f"{says}\n")
