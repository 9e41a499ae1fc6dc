"""Signals: what each does where, in processes of their own; and that one process tells the others."""
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

from diffusion_jax.build import ConfigError
from diffusion_jax.train import notes, stop
from diffusion_jax.train.stop import Later, Saved, Stopped

ROOT = Path(__file__).parents[2]
HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
STARTS = """
import contextlib, json, os, signal, sys, threading, time
from diffusion_jax.train import stop

def python(seconds):
    end = time.time() + seconds
    while time.time() < end:
        time.sleep(0.01)

def swallows(seconds):                                                     # as a callback of a library may
    try:
        python(seconds)
    except BaseException:
        python(seconds)

def logs(seconds):                                                         # as orbax does where its waiting ends
    from absl import logging
    try:
        python(seconds)
    except BaseException:
        logging.exception("the save failed")
        raise

def compiler(seconds):                                                     # a call that hears no signal, as XLA's are
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])     # other threads get them
    time.sleep(seconds)

def collector(seconds):                                                    # what is raised in its callbacks is lost
    import gc
    calls = []
    def callback(*_):
        calls.append(1)
        if len(calls) == 1:
            python(0.5)
    gc.callbacks.append(callback)
    stop.GRACE = 15
    gc.collect()
    python(seconds)

def loop(seconds):
    with stop.Later() as later:
        while later.number is None:
            time.sleep(0.01)
        print("saved", flush=True)
    raise stop.Saved(later.number)

def deaf_loop(seconds):
    with stop.Later():
        python(seconds)

def resumable(seconds):
    with stop.resumable():
        python(seconds)

def hangs(seconds):                                                        # a thread that the interpreter would wait for
    threading.Thread(target=time.sleep, args=(seconds,)).start()
    raise ValueError("a bug")

for line in sys.stdin:
    work, log, ignored = json.loads(line)
    if not (child := os.fork()):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        for number in stop.NAMES:                                          # whoever started the tests may ignore some: nohup
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)
        stop.GRACE = 1.0
        stop.heed()
        try:
            print("ready", flush=True)
            globals()[work](20)
        except BaseException as error:
            stop.end(error)
        stop.leave(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def starter():
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", STARTS], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    yield process
    process.stdin.close()
    process.wait()


def ended(starter, tmp_path, work, numbers, ignored=0):
    """(exit code, what it said, seconds from the last signal on) of a process that gets signals."""
    log = tmp_path / "log.txt"
    starter.stdin.write(json.dumps([work, str(log), int(ignored)]) + "\n")
    starter.stdin.flush()
    child = int(starter.stdout.readline())
    while not log.exists() or "ready" not in log.read_text():
        time.sleep(0.005)
    for number in numbers:
        time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):                      # ended by the one before
            os.kill(child, number)
    since = time.time()
    code = int(starter.stdout.readline())
    return code, log.read_text().removeprefix("ready\n"), time.time() - since


ENDS = [
    ("python", [INT], 130, "stopped by Ctrl-C\n"),
    ("python", [TERM], 143, "stopped by SIGTERM\n"),
    ("python", [HUP], 129, "stopped by SIGHUP\n"),
    ("swallows", [INT], 130, "stopped by Ctrl-C\n"),
    ("logs", [INT], 130, "stopped by Ctrl-C\n"),
    ("collector", [INT], 130, "stopped by Ctrl-C\n"),
    ("collector", [TERM], 143, "stopped by SIGTERM\n"),
    ("compiler", [INT], 130, "stopped by Ctrl-C\n"),
    ("compiler", [TERM], 143, "stopped by SIGTERM\n"),
    ("compiler", [INT, INT], 130, "stopped at once by Ctrl-C\n"),
    ("loop", [INT], 130, "Ctrl-C: the step is finished and saved, once more ends it at once\nsaved\n"),
    ("loop", [TERM], 0, "SIGTERM: the step is finished and saved\nsaved\n"),
    ("loop", [HUP], 0, "SIGHUP: the step is finished and saved\nsaved\n"),
    ("deaf_loop", [INT, INT], 130,
     "Ctrl-C: the step is finished and saved, once more ends it at once\nstopped at once by Ctrl-C\n"),
    ("deaf_loop", [TERM, INT], 130, "SIGTERM: the step is finished and saved\nstopped at once by Ctrl-C\n"),
    ("resumable", [INT], 130, "stopped by Ctrl-C: run the same command to go on\n"),
    ("resumable", [TERM], 0, "stopped by SIGTERM: run the same command to go on\n"),
    ("resumable", [HUP], 0, "stopped by SIGHUP: run the same command to go on\n"),
]
# Each kind of work once, each signal at least once. "swallows" and a single signal to "compiler" wait for GRACE to pass.
OF_EACH = {"python": [HUP], "logs": [INT], "collector": [TERM], "compiler": [INT, INT], "loop": [INT], "deaf_loop": [TERM, INT],
           "resumable": [TERM]}


@pytest.mark.parametrize(("work", "numbers", "code", "says"), [
    pytest.param(*end, marks=() if OF_EACH.get(end[0]) == end[1] else pytest.mark.slow) for end in ENDS
], ids=lambda value: "+".join(number.name for number in value) if isinstance(value, list) else None)
def test_a_signal_ends_a_process_in_one_line(starter, tmp_path, work, numbers, code, says):
    got = ended(starter, tmp_path, work, numbers)
    assert got[:2] == (code, says) and got[2] < 8


@pytest.mark.parametrize(("lost", "read", "ends"), [(0, 1, False), (0, 2, True), (1, 2, False), (2, 3, False), (2, 4, True)])
def test_a_signal_that_was_lost_is_no_second_one(monkeypatch, lost, read, ends):
    signals, left = stop._Signals(), []
    monkeypatch.setattr(signals, "insist", lambda number: None)
    monkeypatch.setattr(stop, "leave", lambda code, says: left.append(says))
    monkeypatch.setattr(stop.threading, "Timer", lambda *_: SimpleNamespace(start=lambda: None))
    for _ in range(lost):                                                  # before the watching thread has read anything
        signals.lost(SimpleNamespace(exc_value=stop.Stopped(INT)))
    reads = iter([bytes([INT] * read)])
    monkeypatch.setattr(stop.os, "read", lambda *_: next(reads))
    with pytest.raises(StopIteration):
        signals.watch(0)
    assert left == ["stopped at once by Ctrl-C"] * ends


@pytest.mark.parametrize(("ignored", "work"), [
    pytest.param(HUP, "python", id="nohup-python"), pytest.param(INT, "loop", id="in the background-loop"),
    pytest.param(HUP, "loop", id="nohup-loop", marks=pytest.mark.slow),
    pytest.param(INT, "python", id="in the background-python", marks=pytest.mark.slow)])
def test_what_is_ignored_at_the_start_stays_ignored(starter, tmp_path, work, ignored):
    code, says, _ = ended(starter, tmp_path, work, [ignored, TERM], ignored)
    assert code == {"python": 143, "loop": 0}[work] and stop.NAMES[ignored] not in says and "SIGTERM" in says


def test_an_error_ends_a_process_whatever_its_threads_do(starter, tmp_path):
    code, says, seconds = ended(starter, tmp_path, "hangs", [])
    assert code == 1 and says.startswith("Traceback") and says.endswith("ValueError: a bug\n") and seconds < 5


@pytest.mark.parametrize(("error", "says", "code"), [
    (ConfigError("give\n  --workdir"), "error: give --workdir", 2),
    (OSError(28, "No space left"), "error: [Errno 28] No space left", 2),
    (flags.Error("no such flag"), "error: no such flag", 2), (KeyboardInterrupt(), "stopped by Ctrl-C", 130),
    (Stopped(HUP), "stopped by SIGHUP", 129), (ValueError("a bug"), "ValueError: a bug", 1),
])
def test_every_error_has_its_words_and_its_code(error, says, code):
    assert stop.reason(error) == (says, code)


def test_a_loop_gives_the_handlers_back_and_other_threads_have_none():
    before = [signal.getsignal(number) for number in stop.NAMES]
    with Later() as later:
        assert signal.getsignal(TERM) not in before
        os.kill(os.getpid(), TERM)
        os.kill(os.getpid(), HUP)
        assert later.number == TERM
    assert [signal.getsignal(number) for number in stop.NAMES] == before
    inside = []

    def other():
        with Later():
            inside.extend(signal.getsignal(number) for number in stop.NAMES)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert inside == before


def test_where_jax_stops_several_processes_the_other_signals_are_passed_on_as_sigterm():
    got = []
    before = signal.signal(TERM, lambda *_: got.append(TERM))                  # as JAX has taken it
    try:
        with Later(preemption=True) as later:
            os.kill(os.getpid(), HUP)
            assert later.number == HUP and got == [TERM]
        assert Saved(HUP).code == 0 and Saved(INT).code == 130
    finally:
        signal.signal(TERM, before)


class Client:
    """What the processes of a run share, as JAX has it."""

    def __init__(self):
        self.notes = {}

    def key_value_set(self, key, value):
        if key in self.notes:
            raise RuntimeError("ALREADY_EXISTS")
        self.notes[key] = value

    def key_value_try_get(self, key):
        if key not in self.notes:
            raise RuntimeError("NOT_FOUND")
        return self.notes[key]


class Left(BaseException):
    """In place of the end of this process."""


@pytest.fixture
def client(monkeypatch):
    def leave(code, says=""):
        raise Left(code)

    shared = Client()
    monkeypatch.setattr(stop, "POLL", 0.001)
    monkeypatch.setattr(notes, "client", lambda: shared)
    monkeypatch.setattr(stop, "leave", leave)
    return shared


def test_a_process_that_fails_tells_the_others_which_end_too(client, monkeypatch, capsys):
    with pytest.raises(Left) as end, stop.together():
        raise ConfigError("the data ended")
    assert end.value.args == (2,) and capsys.readouterr().err == "error: the data ended\n"
    with pytest.raises(Left), stop.together():
        raise ValueError("because the other one is gone")                  # the first word stays
    capsys.readouterr()
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with pytest.raises(Left) as end:
        stop._listen()
    assert end.value.args == (2,)
    assert capsys.readouterr().err == "process 1 ends because process 0 does: error: the data ended\n"


@pytest.mark.parametrize("error", [Saved(TERM), GeneratorExit(), None], ids=repr)
def test_a_good_end_tells_nobody(client, error):
    with contextlib.suppress(SystemExit, GeneratorExit), stop.together():
        if error is not None:
            raise error
    assert not client.notes


def test_one_process_alone_has_nobody_to_tell(monkeypatch):
    assert notes.client() is None
    with pytest.raises(ConfigError), stop.together():
        raise ConfigError("a mistake")
