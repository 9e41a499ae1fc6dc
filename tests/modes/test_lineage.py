"""Mode `lineage`: what it is asked; and the tiny lineage, trained and compared, also where it is killed on the way."""
import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest
from pages import ROOT, page, refused

from diffusion_jax.build import ConfigError
from diffusion_jax.lineage import compare, train
from diffusion_jax.lineage import page as html
from diffusion_jax.lineage.stages import Trained
from diffusion_jax.modes import lineage
from diffusion_jax.runs import pages

COMMAND = ("--mode", "lineage", "--config", "lineage:tiny")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "mode lineage needs --config"),
        (("--config", "lineage:digit"), "did you mean 'digits'"),
        (("--config", "digits:tiny"), "unknown field of a lineage"),
        (("--config", "lineage:tiny", "--config.budget=flop"), "did you mean 'flops'"),
        (("--config", "lineage", "--config.ablate=block"), "did you mean 'blocks'"),
        (("--config", "lineage:tiny", "--config.ablate=blocks"), "ablations are of the digits"),
        (("--config", "lineage:flowers=pictures"), "write lineage:flowers=PICTURES,LATENTS"),
        (("--config", "lineage:tiny", "--config.seeds=0"), "seeds is 1"),
        (("--config", "lineage:tiny", "--num", "3"), "--num belongs to modes"),
    ],
)
def test_mistakes(cli, tmp_path, flags, says):
    assert refused(cli("--mode", "lineage", "--workdir", tmp_path / "run", *flags), says)
    assert not (tmp_path / "run").exists()


def test_training_refuses_a_page_of_stages(cli, tmp_path):
    assert refused(cli("--config", "lineage:tiny", "--workdir", tmp_path / "run"))


def test_what_is_trained_is_compared_and_written(monkeypatch, tmp_path):
    calls = {}
    rows = (Trained(None, 0, "", 1, 1.0, 1, 1.0, ""),)
    monkeypatch.setattr(train, "train", lambda *arguments: calls.update(trained=arguments) or rows)
    monkeypatch.setattr(compare, "compare", lambda *arguments: calls.update(compared=arguments) or "comparison")
    monkeypatch.setattr(html, "write", lambda *arguments: calls.update(written=arguments) or "lineage.html")
    lineage.run(lineage.Options(pages.read("lineage:tiny")), str(tmp_path))
    path, workdir, _ = calls["trained"]
    assert workdir == str(tmp_path) and path.data == "digits"
    assert calls["compared"][:3] == (path, rows, str(tmp_path))
    assert calls["written"] == ("comparison", str(tmp_path))


def test_several_hosts_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="runs on one host"):
        lineage.run(lineage.Options(pages.read("lineage:tiny")), str(tmp_path))


def test_options_need_a_page():
    with pytest.raises(ConfigError, match="lineage:digits"):
        lineage.Options()


# The whole of it ------------------------------------------------------------------------------------------------------------


def started(workdir):
    """The tiny lineage in a process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-m", "diffusion_jax.main", *COMMAND, "--workdir", str(workdir)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_the_tiny_lineage_is_the_same_where_it_is_killed(tmp_path):
    whole = started(tmp_path / "whole")
    out, _ = whole.communicate(timeout=3000)
    assert whole.returncode == 0, out
    rows = json.loads((tmp_path / "whole/trained.json").read_text())
    assert len(rows) == len(page("lineage").stages) and not [row["error"] for row in rows if row["error"]]
    assert (tmp_path / "whole/lineage.html").stat().st_size > 10_000
    # Killed whenever another folder has come: in training, between two stages, in the comparison.
    killed = 0
    for name in ("dvae", "ldm", "edm2", "dit/lineage"):
        process = started(tmp_path / "killed")
        while process.poll() is None and not (tmp_path / "killed" / name).exists():
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += process.returncode == -signal.SIGKILL
    last = started(tmp_path / "killed")
    out, _ = last.communicate(timeout=3000)
    assert last.returncode == 0 and killed == 4, out
    assert (tmp_path / "killed/lineage.csv").read_bytes() == (tmp_path / "whole/lineage.csv").read_bytes()
