"""Mode `lineage`: what it is asked; and the tiny lineage, trained and compared, also where it is killed on the way."""
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from pages import ROOT, page, refused

from diffusion_jax.build import ConfigError
from diffusion_jax.lineage import compare, stages, train
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


def test_what_is_trained_is_compared_alone(cli, monkeypatch, tmp_path):
    assert refused(cli(*COMMAND, "--compare", "--workdir", tmp_path / "no"), "train them first")
    calls = []
    monkeypatch.setattr(train, "train", lambda *arguments: pytest.fail("trained"))
    monkeypatch.setattr(train, "read", lambda *arguments: "rows")
    monkeypatch.setattr(compare, "compare", lambda *arguments: calls.append(arguments) or "comparison")
    monkeypatch.setattr(html, "write", lambda *arguments: "lineage.html")
    result = cli(*COMMAND, "--compare", "--workdir", tmp_path)
    assert result.code == 0 and calls[0][1:3] == ("rows", str(tmp_path))


class Hosts:
    """What `on_hosts` asks of hosts.

    Attributes:
      asked: names of what was done.
      arguments: of the command that compares.
    """

    def __init__(self, index, error=""):
        self.index, self.error, self.asked, self.arguments = index, error, [], []

    def command(self, arguments, log, beat):
        self.asked.append("command")
        self.arguments = arguments
        return self.error

    def follow(self):
        self.asked.append("follow")

    def end(self):
        self.asked.append("end")


def on_hosts(monkeypatch, workdir, hosts, **leaves):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(lineage, "hosts_of", lambda: hosts)
    monkeypatch.setattr(train, "train", lambda *arguments: hosts.asked.append("train"))
    lineage.run(lineage.Options(pages.read("lineage:tiny"), **leaves), str(workdir))


def test_the_first_of_several_hosts_decides_and_compares_in_a_process_of_its_own(monkeypatch, tmp_path):
    first, second = Hosts(0), Hosts(1)
    on_hosts(monkeypatch, tmp_path, first)
    on_hosts(monkeypatch, tmp_path, second)
    assert (first.asked, second.asked) == (["train", "command", "end"], ["follow"])
    flags = dict(zip(first.arguments[3::2], first.arguments[4::2], strict=True))
    assert first.arguments[:3] == ["--mode", "lineage", "--compare"] and flags["--workdir"] == str(tmp_path)
    assert stages.read(pages.read(flags["--config"])) == stages.read(pages.read("lineage:tiny"))


def test_several_hosts_hear_of_a_comparison_that_fails(monkeypatch, tmp_path):
    hosts = Hosts(0, "measure was not trained")
    with pytest.raises(ConfigError, match="measure was not trained"):
        on_hosts(monkeypatch, tmp_path, hosts)
    assert hosts.asked == ["train", "command"]


def test_several_hosts_do_not_compare_alone(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="leave --distributed out"):
        on_hosts(monkeypatch, tmp_path, Hosts(0), compare=True)


def test_options_need_a_page():
    with pytest.raises(ConfigError, match="lineage:digits"):
        lineage.Options()


# The whole of it ------------------------------------------------------------------------------------------------------------


def started(workdir, command=COMMAND, **variables):
    """The tiny lineage in a process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | variables
    line = [sys.executable, "-m", "diffusion_jax.main", *command, "--workdir", str(workdir)]
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


TWO_STAGES = """
from diffusion_jax.runs import pages


def get_config():
    page = pages.read("lineage:tiny")
    page.stages = [stage for stage in page.stages if stage["key"] in ("measure", "dit")]
    page.judge = None
    return page
"""
EXACT = ("network calls", "parameters", "training FLOPs", "pictures seen")


def together(workdir, command):
    """Two processes that joined."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    where = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [started(workdir, (*command, "--distributed"), **where, JAX_PROCESS_ID=str(index)) for index in range(2)]


def table(workdir):
    """The one row of lineage.csv."""
    with (workdir / "lineage.csv").open() as file:
        return next(csv.DictReader(file))


@pytest.mark.slow
def test_two_processes_stop_together_go_on_and_have_the_table_of_one(tmp_path):
    page = tmp_path / "two.py"
    page.write_text(TWO_STAGES)
    command = ("--mode", "lineage", "--config", str(page))
    processes = together(tmp_path / "two", command)
    while all(process.poll() is None for process in processes) and not (tmp_path / "two/measure/metrics.jsonl").exists():
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, ends
    assert "process 0 ends because process 1 does: stopped by SIGTERM" in ends[0]
    processes = together(tmp_path / "two", command)
    ends = [process.communicate(timeout=3000)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    rows = json.loads((tmp_path / "two/trained.json").read_text())
    assert [row["error"] for row in rows] == ["", ""]
    assert (tmp_path / "two/logs/dit.1.log").stat().st_size and (tmp_path / "two/lineage.html").stat().st_size > 10_000
    one = started(tmp_path / "one", command)
    out, _ = one.communicate(timeout=3000)
    assert one.returncode == 0, out
    ours, theirs = table(tmp_path / "two"), table(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    assert {name: ours[name] for name in EXACT} == {name: theirs[name] for name in EXACT}
    for name in ("FID", "bits/dim"):                      # sums over two processes are rounded otherwise
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3), name
