"""Hosts of a lineage, each a thread here and its commands small programs: what one does all do, and all hear of a failure."""
import sys
import threading
import time

import pytest

from diffusion_jax.lineage import hosts, process
from diffusion_jax.lineage.hosts import Hosts
from diffusion_jax.train import notes, stop

ABOVE = """
import os, time
me = os.environ["JAX_PROCESS_ID"]
"""


class Shared:
    """What JAX shares between processes, here between threads."""

    def __init__(self):
        self.notes = {}
        self.lock = threading.Lock()

    def key_value_set(self, key, value):
        with self.lock:
            if key in self.notes:
                raise RuntimeError("ALREADY_EXISTS")
            self.notes[key] = value

    def key_value_try_get(self, key):
        return self.notes[key]


@pytest.fixture
def several(tmp_path, monkeypatch):
    """Runs a command of two hosts: (its program) -> its error."""
    shared = Shared()
    monkeypatch.setattr(process, "POLL", 0.05)
    monkeypatch.setattr(hosts, "GRACE", 0.5)
    monkeypatch.setattr(notes, "client", lambda: shared)
    monkeypatch.setattr(hosts, "leading_host", lambda: "10.0.0.1")
    file, popen = tmp_path / "program.py", process.subprocess.Popen
    lines = []

    def started(line, **options):
        lines.append(line)
        return popen([sys.executable, str(file)], **options)

    monkeypatch.setattr(process.subprocess, "Popen", started)

    def run(program, *arguments):
        file.write_text(ABOVE + program)
        first, second = (Hosts(index, 2, notes.Notes(hosts.NOTES)) for index in range(2))
        follower = threading.Thread(target=second.follow)
        follower.start()
        try:
            return first.command(arguments or ("--config", "page.py"), tmp_path / "logs/dit.log", lambda seconds: None)
        finally:
            first.end()
            follower.join(20)
            assert not follower.is_alive()

    run.folder, run.lines = tmp_path, lines
    return run


def test_a_command_runs_on_every_host_joined_with_the_others(several):
    program = "print(me, os.environ['JAX_NUM_PROCESSES'], os.environ['JAX_COORDINATOR_ADDRESS'])"
    assert several(program) == ""
    logs = [(several.folder / "logs" / name).read_text().split() for name in ("dit.log", "dit.1.log")]
    assert [log[:2] for log in logs] == [["0", "2"], ["1", "2"]]
    host, port = logs[0][2].split(":")
    assert logs[0][2] == logs[1][2] and host == "10.0.0.1" and int(port) > 0
    assert all("--distributed" in line for line in several.lines) and len(several.lines) == 2


@pytest.mark.parametrize(("failing", "says"), [(0, "no room"), (1, "host 1: no room")])
def test_one_that_fails_ends_the_others_and_is_named(several, failing, says):
    began = time.monotonic()
    program = f"""
if me == "{failing}":
    raise SystemExit("error: no room")
time.sleep(60)
"""
    assert several(program) == says
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("end", [f"raise SystemExit('process 1{stop.BECAUSE}0 does: error: no room')", "os.abort()"])
def test_the_reason_is_that_of_the_host_that_failed_first(several, end):
    """A host that ends because another one does may be seen to before that one."""
    program = f"""
if me == "1":
    {end}
time.sleep(0.4)
raise SystemExit("error: no room")
"""
    assert several(program) == "no room"


def test_of_parts_that_all_say_that_another_failed_one_is_named(several):
    assert several("os.abort()") == "SIGABRT ended it"


def test_other_modes_run_on_the_first_host_alone(several):
    program = "open(os.environ['DONE'], 'a').write('x')"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PROCESS_ID", "0")
        patch.setenv("DONE", str(several.folder / "done"))
        assert several(program, "--mode", "encode", "--workdir", "vae") == ""
    assert (several.folder / "done").read_text() == "x"
    assert len(several.lines) == 1 and "--distributed" not in several.lines[0]


def test_one_host_of_a_tpu_pod_computes_on_its_cpus(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    assert "JAX_PLATFORMS" not in hosts.alone()
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: object())
    assert hosts.alone()["JAX_PLATFORMS"] == "cpu"


def test_the_port_of_the_lineage_itself_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:1")
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "3")
    environment = hosts.joined("10.0.0.1:7", 4, 2)
    assert environment["JAX_COORDINATOR_ADDRESS"] == "10.0.0.1:7" and environment["JAX_LOCAL_DEVICE_IDS"] == "3"
    assert "JAX_COORDINATOR_BIND_ADDRESS" not in environment
