"""One writer at a time in a folder: two that train in one workdir, or fill one folder of features, would mix their files.

    with one_writer("runs/x", "trained"):
        ...

    runs/x/.writer.lock          locked by the system (flock) for as long as the process lives: a kill frees it at once
           .writer.json          who that is, for the error of a second one

Readers need no lock. Where the file system has no flock (some network file systems), a file that is there stands for the lock:
a dead process of this host is found out by its number, one of another host is not, and the error then says what to delete.
"""
from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
from absl import logging

from diffusion_jax.build import ConfigError
from diffusion_jax.files import whole

LOCK, HOLDER, SOFT = ".writer.lock", ".writer.json", ".writer.soft"
TRIES = 10
"""How often a lock is asked for that nobody's name is at: its holder begins just now, or has just ended."""
PAUSE = 0.1

_ours: set[tuple[str, int, int]] = set()
"""(folder, process, thread) that hold: what writes into a folder may call others that do."""


@contextlib.contextmanager
def one_writer(folder: str | os.PathLike[str], doing: str = "trained") -> Iterator[None]:
    """Holds a folder, which is made where it is missing; one that is still empty at the end goes again.

    Of the processes of one run the first holds it for all.

    Args:
      folder: ~ is expanded.
      doing: what is done to it, for the error of others: 'trained', 'written'.

    Raises:
      ConfigError: another process holds it, which is named; or it cannot be written.
    """
    folder = Path(folder).expanduser()
    key = str(folder.resolve()), os.getpid(), threading.get_ident()
    if key in _ours or jax.process_index():
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
                held.callback(_remove_empty, missing)
            folder.mkdir(parents=True, exist_ok=True)
            _acquire(folder, held)
            note = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"}
            held.callback((folder / HOLDER).unlink, missing_ok=True)
            with whole(folder / HOLDER) as file:
                file.write_text(json.dumps(note | {"doing": doing}))
        except filelock.Timeout:
            raise _busy(folder) from None
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error.strerror or error}): choose another") from None
        _ours.add(key)
        held.callback(_ours.remove, key)
        yield


def _acquire(folder: Path, held: contextlib.ExitStack) -> None:
    """Locks a folder until `held` closes.

    Raises:
      filelock.Timeout: it is locked.
    """
    for left in reversed(range(TRIES)):
        try:
            lock = _try(folder)
        except filelock.Timeout:
            if not left or _holder(folder):
                raise
            time.sleep(PAUSE)
        else:
            held.callback(lock.release)
            # While it is held: who opened the file before finds that it has no name any more, and asks anew.
            held.callback((folder / LOCK).unlink, missing_ok=True)
            return


def _try(folder: Path) -> Any:
    """A lock that is held."""
    try:
        # filelock would fall back without our line, and for one of the errors only.
        lock = filelock.FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
        lock.acquire()
        return lock
    except filelock.Timeout:
        raise
    except OSError as error:
        if not _refuses(folder):
            raise
        logging.warning("%s lies on a file system that locks no files (%s): the file %s stands for the lock, and a killed "
                        "process leaves it behind", folder, error.strerror, folder / SOFT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        soft = filelock.SoftFileLock(folder / SOFT, timeout=0)
        soft.acquire()
    return soft


def _refuses(folder: Path) -> bool:
    """Whether files can be written in a folder: then it is the locking that its file system refuses."""
    trial = folder / f".trial.{os.getpid()}"
    try:
        trial.touch()
        trial.unlink()
    except OSError:
        return False
    return True


def _holder(folder: Path) -> dict[str, Any]:
    """Who holds a folder, by their own word; {} where there is none, or a dead process of this host left it."""
    try:
        stored = json.loads((folder / HOLDER).read_text())
        note = {name: str(stored[name]) for name in ("pid", "host", "since", "doing")}
        if note["host"] == socket.gethostname():
            with contextlib.suppress(PermissionError):     # another user's, so it lives
                os.kill(int(note["pid"]), 0)               # no signal, only whether there is such a process
        return note
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return {}


def _busy(folder: Path) -> ConfigError:
    """The error for a folder that another process holds."""
    holder = _holder(folder)
    if not holder:
        return ConfigError(f"{folder} is written by another process: wait for it or choose another workdir")
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    says = f"{folder} is being {holder['doing']} by {who}: wait for it or choose another workdir"
    if (folder / SOFT).exists():
        says += f"; if it is no more, delete {folder / SOFT}"
    return ConfigError(says)


def _remove_empty(folder: Path) -> None:
    """Removes a folder that was made here and in which nothing came to lie."""
    with contextlib.suppress(OSError):
        folder.rmdir()
