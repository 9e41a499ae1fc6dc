"""What ends a process before its work is done: a signal, a mistake, or another process of the same run.

Ctrl-C (SIGINT), SIGTERM and SIGHUP raise `Stopped` in the main thread, so that files which are half written go as after any
error; between `Later`'s ends, in a training loop, they are noted, and the loop saves first. A signal that was ignored when the
process began stays ignored: nohup, and jobs in the background of a script.

A second Ctrl-C ends the process at once, and so does a thread where the main one does not hear the first within `GRACE`: it may
be in a compiler for minutes. Nothing that it leaves is taken for whole, because what is whole got its name by one rename.

Of several processes the one that fails says so to the others (`together`), before it lets go of anything: they wait for it in
the middle of a sum over all devices, and it would wait for them while it closes its checkpoints.
"""
from __future__ import annotations

import _thread
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from absl import flags

from diffusion_jax.build import ConfigError
from diffusion_jax.train import notes
from diffusion_jax.train.log import first_line

NAMES = {number: name for name, number in (
    ("Ctrl-C", signal.SIGINT), ("SIGTERM", signal.SIGTERM), ("SIGHUP", getattr(signal, "SIGHUP", None))) if number is not None}
"""What each signal is called where a line says that it came."""
GRACE = 5.0
"""Seconds that the main thread has to hear a signal, and to clean up."""
POLL = 0.5
"""Seconds between two looks at whether another process failed."""
KEY = "diffusion_jax/failed"
BECAUSE = " ends because process "
"""In what a process says that ends for another one's reason."""


class Stopped(KeyboardInterrupt):
    """A signal came. `number` is the signal's, `code` what a shell makes of it: 130 after Ctrl-C."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(f"stopped by {NAMES.get(number, number)}")
        self.number, self.code = number, 128 + number


class Saved(SystemExit):
    """A run ends early, with all that it has to lose on disk; code 130 after Ctrl-C, else 0."""

    def __init__(self, number: int):
        super().__init__(128 + number if number == signal.SIGINT else 0)


class _Signals:
    """Which signal came first, and what it does. One for the process, since so are its handlers."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.later: Later | None = None
        self.watched = self.resumable = False
        # Those of `lost` that `watch` has not read yet: a deque, for its ends are taken from two threads.
        self.repeated: deque[int] = deque()

    def on(self, number: int, frame: FrameType | None = None) -> None:
        """The handler."""
        again, self.first = self.first is not None, self.first or number
        if self.later is not None:
            self.later.note(number)
        elif not again:
            raise Stopped(number)

    def watch(self, wakeup: int) -> None:
        """Reads signals as they come, also while the main thread is in a library and hears none."""
        again = False
        while True:
            for number in os.read(wakeup, 64):
                if number in NAMES and self.repeated:
                    self.repeated.pop()
                elif number in NAMES:
                    if again and number == signal.SIGINT:
                        leave(128 + number, f"stopped at once by {NAMES[number]}")
                    again = True
                    if self.later is None:
                        threading.Thread(target=self.insist, args=(number,), daemon=True).start()

    def lost(self, unraisable: Any) -> None:
        """For `sys.unraisablehook`: `Stopped` came where nobody can catch it, as in a callback of the garbage collector."""
        stopped = unraisable.exc_value
        if not isinstance(stopped, Stopped):
            return sys.__unraisablehook__(unraisable)
        self.first = None
        self.repeated.append(stopped.number)
        threading.Timer(0.02, _thread.interrupt_main, (stopped.number,)).start()

    def insist(self, number: int) -> None:
        """Ends the process where the main thread has not done so in time."""
        time.sleep(GRACE)
        leave(Saved(number).code if self.resumable else 128 + number, str(Stopped(number)))


_signals = _Signals()
_leaving = threading.Lock()


def retake() -> None:
    """Takes the signals back that a library took for itself; nothing where `heed` was not called."""
    if _signals.watched:
        heed()


def _is_no_stop(record: logging.LogRecord) -> bool:
    """Whether a line of the log is of anything else than a signal: orbax logs with its traceback whatever ends its waiting."""
    return not (record.exc_info and isinstance(record.exc_info[1], Stopped))


def heed() -> None:
    """From here on signals end this process as this file says. To be called in the main thread."""
    for number in NAMES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _signals.on)
    if not _signals.watched:
        _signals.watched = True
        logging.getLogger("absl").addFilter(_is_no_stop)
        sys.unraisablehook = _signals.lost
        wakeup, writes = os.pipe()
        os.set_blocking(writes, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        threading.Thread(target=_signals.watch, args=(wakeup,), daemon=True).start()


class Later:
    """A context manager between whose ends signals are noted: `number` is that of the first, None before.

    Args:
      preemption: whether JAX listens for SIGTERM, as it does where several processes are to stop at the same step. The other
        signals are then passed on as that one.
    """

    def __init__(self, preemption: bool = False):
        self.number: int | None = None
        self._preemption, self._before = preemption, {}

    def note(self, number: int) -> None:
        """A signal came."""
        if number == signal.SIGINT and self.number is not None:
            leave(128 + number, f"stopped at once by {NAMES[number]}")
        if number == getattr(signal, "SIGHUP", None):
            _without_terminal()
        self.number = self.number or number
        if self._preemption:
            os.kill(os.getpid(), signal.SIGTERM)
        again = ", once more ends it at once" if number == signal.SIGINT else ""
        os.write(2, f"{NAMES[number]}: the step is finished and saved{again}\n".encode())

    def __enter__(self) -> Later:
        if threading.current_thread() is threading.main_thread():
            _signals.later = self
            for number in NAMES:
                ours = not (self._preemption and number == signal.SIGTERM)
                if ours and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, _signals.on)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            _signals.later = _signals.first = None


def _without_terminal() -> None:
    """What is printed goes nowhere: a terminal that hung up refuses it, and a run must not fail of that."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if os.isatty(number):
            os.dup2(nowhere, number)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Of a command that goes on where it stopped: a signal ends it well, with code 130 after Ctrl-C and else 0."""
    _signals.resumable = True
    try:
        yield
    except KeyboardInterrupt as stopped:
        number = getattr(stopped, "number", signal.SIGINT)
        print(f"stopped by {NAMES[number]}: run the same command to go on", file=sys.stderr)
        raise Saved(number) from None
    finally:
        _signals.resumable = False


def reason(error: BaseException) -> tuple[str, int]:
    """(what to say of an error, the process's exit code): one line and 2 for what the user can mend."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or str(Stopped()), getattr(error, "code", 128 + signal.SIGINT)
    if isinstance(error, (ConfigError, OSError, flags.Error)):
        return f"error: {' '.join(str(error).split())}", 2
    return "".join(traceback.format_exception(error)).rstrip(), 1


def leave(code: int, says: str = "") -> NoReturn:
    """Ends this process now.

    Not by way of the interpreter's shutdown: libraries wait there for threads and for other processes, some for ever.
    """
    # The thread that watches and the main one may come here for the same signal: the first has the last word.
    first = _leaving.acquire(blocking=False)
    with contextlib.suppress(OSError, ValueError):
        if first:
            if says:
                print(says, file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            logging.shutdown()
    if not first:
        time.sleep(POLL)
    os._exit(code)


def end(error: BaseException) -> NoReturn:
    """Ends this process with what came out of the program: SystemExit, or an error with its traceback."""
    if not isinstance(error, SystemExit):
        says, code = reason(error)
        leave(code, says)
    if isinstance(error, Saved):
        import jax

        jax.distributed.shutdown()                         # waits for the others, which are saving too, where there are any
    if isinstance(error.code, str):
        leave(1, error.code)
    leave(error.code or 0)


# Several processes ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends all processes of a run, where there are several and this one fails; to be entered after what would wait for them."""
    try:
        yield
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        client = notes.client()
        if client is None:
            raise
        # Of a sum over all devices that another process left, that process has the reason: it may be telling it just now.
        time.sleep(POLL if reason(error)[1] == 1 else 0)
        _heed_others(client)
        says, code = reason(error)
        print(says, file=sys.stderr, flush=True)
        tell(client, says if code != 1 else first_line(error), code)
        time.sleep(3 * POLL)                               # the others hear it before the process that leads them is gone
        leave(code)


def listen() -> None:
    """From here on this process ends when another one says that it failed."""
    threading.Thread(target=_listen, daemon=True).start()


def tell(client: Any, says: str, code: int) -> None:
    """Says to the other processes that this one failed; who is first is right."""
    import jax

    note = {"process": jax.process_index(), "says": says, "code": code}
    with contextlib.suppress(Exception):                   # another one has failed already, or the leader is gone
        client.key_value_set(KEY, json.dumps(note))


def _listen() -> None:
    while (client := notes.client()) is not None:
        time.sleep(POLL)
        _heed_others(client)


def _heed_others(client: Any) -> None:
    """Ends this process where another one said that it failed."""
    import jax

    try:
        note = json.loads(client.key_value_try_get(KEY))
    except Exception:                                      # nothing there, or no leader any more
        return
    index = jax.process_index()
    if note["process"] != index:
        print(f"process {index}{BECAUSE}{note['process']} does: {note['says']}", file=sys.stderr, flush=True)
        time.sleep(0 if index else 5 * POLL)               # the first leads the others: it goes last
        leave(note["code"])
