"""One writer at a time: who is refused is told by whom, the dead hold nothing, and what is refused leaves nothing."""
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.train import lock
from diffusion_jax.train.lock import HOLDER, LOCK, SOFT, one_writer

ROOT = Path(__file__).parents[2]
HOLDERS = """
import fcntl, json, os, signal, sys, time
from diffusion_jax.train.lock import one_writer

signal.signal(signal.SIGCHLD, signal.SIG_IGN)                              # the dead are gone at once
for line in sys.stdin:
    folder, number = json.loads(line)
    ours, theirs = os.pipe()
    if not (process := os.fork()):
        def refuse(*_):
            raise OSError(number, "refused")
        if number:
            fcntl.flock = refuse
        with one_writer(folder, "trained"):
            os.write(theirs, b"held")
            time.sleep(300)
    os.close(theirs)
    print(process if os.read(ours, 4) else 0, flush=True)
"""


@pytest.fixture(scope="module")
def holders():
    """A process that forks those that hold a folder: starting each anew takes seconds."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", HOLDERS], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture
def holder(tmp_path, holders):
    """Starts a process that holds tmp_path/run, with an error where flock is to refuse; its number."""
    started = []

    def start(number=0):
        holders.stdin.write(json.dumps([str(tmp_path / "run"), number]) + "\n")
        holders.stdin.flush()
        started.append(int(holders.stdout.readline()))
        assert started[-1]
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def kill(process):
    """Returns when it is dead."""
    os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(process, 0)
            time.sleep(0.001)


def without_flock(monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def refused(folder, *says):
    with pytest.raises(ConfigError) as error, one_writer(folder):
        pass
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in says), error.value


def test_a_second_writer_is_told_of_the_first_and_takes_over_when_it_is_dead(tmp_path, holder):
    first, day = holder(), time.strftime("%Y-%m-%d")
    says = (f"{tmp_path}/run is being trained by process {first} on {socket.gethostname()} since {day} ",
            ": wait for it or choose another workdir")
    refused(tmp_path / "run", *says)
    kill(first)
    assert (tmp_path / "run" / HOLDER).exists()                            # a kill leaves the name, which holds nothing
    with one_writer(tmp_path / "run", "measured"):
        assert json.loads((tmp_path / "run" / HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / HOLDER).exists() and not (tmp_path / "run" / LOCK).exists()


def test_a_link_and_another_spelling_are_the_same_folder(tmp_path, holder, monkeypatch):
    holder()
    (tmp_path / "link").symlink_to("run")
    refused(tmp_path / "link", "is being trained by process")
    (tmp_path / "x").mkdir()
    refused(tmp_path / "x" / ".." / "run", "is being trained by process")
    monkeypatch.setenv("HOME", str(tmp_path))
    refused("~/run", "is being trained by process")


@pytest.mark.parametrize("ends", ["well", "error", "interrupt"])
def test_a_folder_that_stays_empty_goes_again(tmp_path, ends):
    error = {"well": None, "error": ConfigError("a mistake"), "interrupt": KeyboardInterrupt()}[ends]
    try:
        with one_writer(tmp_path / "a" / "run"):
            assert (tmp_path / "a" / "run").is_dir()
            if error:
                raise error
    except (ConfigError, KeyboardInterrupt) as caught:
        assert caught is error
    assert not list(tmp_path.iterdir())
    with one_writer(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "metrics.jsonl").touch()
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["metrics.jsonl"]


def test_who_holds_a_folder_may_call_what_holds_it_too_but_another_thread_may_not(tmp_path):
    outcome = []

    def other():
        try:
            with one_writer(tmp_path):
                outcome.append("in")
        except ConfigError as error:
            outcome.append(str(error))

    with one_writer(tmp_path, "encoded"):
        with one_writer(tmp_path):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"is being encoded by process {os.getpid()}" in outcome[0]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL], ids=errno.errorcode.get)
def test_where_the_file_system_locks_nothing_a_file_stands_for_the_lock(tmp_path, monkeypatch, caplog, number):
    without_flock(monkeypatch, number)
    with one_writer(tmp_path / "run"):
        assert (tmp_path / "run" / SOFT).exists()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "locks no files" in line and os.strerror(number) in line and f"the file {tmp_path}/run/{SOFT}" in line
    assert not list(tmp_path.iterdir())


def test_there_the_living_are_told_and_the_dead_of_this_host_taken_over(tmp_path, monkeypatch, holder):
    first = holder(errno.ENOLCK)
    without_flock(monkeypatch, errno.ENOLCK)
    refused(tmp_path / "run", f"process {first} on ", f"if it is no more, delete {tmp_path}/run/{SOFT}")
    kill(first)
    assert (tmp_path / "run" / SOFT).exists()
    with one_writer(tmp_path / "run"):
        pass


def test_there_one_of_another_host_is_named_with_the_file_to_delete(tmp_path, monkeypatch, holder):
    first = holder(errno.ENOLCK)
    without_flock(monkeypatch, errno.ENOLCK)
    kill(first)
    for name in (SOFT, HOLDER):
        file = tmp_path / "run" / name
        file.write_text(file.read_text().replace(socket.gethostname(), "elsewhere"))
    before = (tmp_path / "run" / SOFT).read_bytes()
    refused(tmp_path / "run", "on elsewhere since ", f"if it is no more, delete {tmp_path}/run/{SOFT}")
    assert (tmp_path / "run" / SOFT).read_bytes() == before
    (tmp_path / "run" / SOFT).unlink()
    with one_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("holder_text", ["", "{", "[]", '{"pid": 1}', '{"pid": 4194999, "host": "%s", "since": "", "doing": ""}'])
def test_a_lock_without_a_name_is_asked_for_again_and_then_said(tmp_path, monkeypatch, holder, holder_text):
    monkeypatch.setattr(lock, "PAUSE", 0.001)
    holder()
    text = holder_text.replace("%s", socket.gethostname())
    (tmp_path / "run" / HOLDER).write_text(text)
    refused(tmp_path / "run", "is written by another process")


@pytest.mark.parametrize("where", ["file", "file/run", "/proc/run", "/dev/full/run"])
def test_a_folder_that_cannot_be(tmp_path, where):
    (tmp_path / "file").touch()
    refused(tmp_path / where, "cannot be written")
