"""A lineage on several hosts: the first decides all, the others run their part of its commands.

    order/3       by the first: a command of every host, and where its processes join
    failed/3      by the host on which it failed first: the others end their part
    ended/3/1     by host 1, of its part: the error, '' where it went well
    order/4       {}: nothing more is to be done

Each of these is a note (train/notes.py). Training is of every host; encoding and comparing are of
the first alone, and the others wait. Processes of a host count as hosts too.
"""
from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.lineage import process
from diffusion_jax.train.notes import Notes, leading_host
from diffusion_jax.train.stop import BECAUSE

GRACE = 20.0
"""Seconds in which the parts of a command that failed elsewhere are to end by themselves."""
NOTES = "diffusion_jax/lineage"
OF_ANOTHER = (BECAUSE, signal.SIGABRT.name)
"""In the error of a part that ended because another one did, which has the reason; JAX aborts a
process that others have left."""


class Hosts:
    """The hosts of a lineage, as one of them sees them.

    Args:
      index: of this one; the first decides.
      count: how many.
      notes: what they tell each other.
    """

    def __init__(self, index: int, count: int, notes: Notes):
        self.index = index
        self._count = count
        self._notes = notes
        self._orders = 0

    def command(self, arguments: Sequence[str], log: Path, beat: Callable[[float], None]) -> str:
        """`process.command` of the first host: training on all of them, other modes on it alone."""
        if "--mode" in arguments:
            return process.command(arguments, log, beat, alone())
        return process.tried(lambda: self._everywhere(arguments, log, beat))

    def end(self) -> None:
        """Lets the others go; of the first host."""
        self._notes.write(f"order/{self._orders}", {})

    def follow(self) -> None:
        """Runs what the first host orders, until nothing more is to be done; of the others."""
        for number in itertools.count():
            order = self._awaited(f"order/{number}")
            if not order:
                return
            self._part(number, order, lambda elapsed: None)

    def _everywhere(
        self, arguments: Sequence[str], log: Path, beat: Callable[[float], None]
    ) -> str:
        """Runs a command once on every host; the error, that of the first to fail."""
        number = self._orders
        self._orders += 1
        order = {"arguments": list(arguments), "log": str(log), "address": _address()}
        self._notes.write(f"order/{number}", order)
        self._part(number, order, beat)
        errors = [self._awaited(f"ended/{number}/{index}") for index in range(self._count)]
        return self._notes.read(f"failed/{number}") or next(filter(None, errors), "")

    def _part(self, number: int, order: Mapping[str, Any], beat: Callable[[float], None]) -> None:
        """Runs this host's part of a command, and notes how it ended."""
        start = time.monotonic()
        arguments = [*order["arguments"], "--distributed"]
        environment = joined(order["address"], self._count, self.index)
        with process.Child(arguments, self._log(order), environment) as child:
            while child.runs():
                beat(time.monotonic() - start)
                if self._notes.read(f"failed/{number}") is not None:
                    child.end(GRACE)
        error = child.error
        if error and self.index:
            error = f"host {self.index}: {error}"
        if error and not any(words in error for words in OF_ANOTHER):
            self._notes.write(f"failed/{number}", error)
        self._notes.write(f"ended/{number}/{self.index}", error)

    def _log(self, order: Mapping[str, Any]) -> Path:
        """The log of a command on this host: logs/dit.log of the first, logs/dit.1.log."""
        log = Path(order["log"])
        return log.with_suffix(f".{self.index}{log.suffix}") if self.index else log

    def _awaited(self, name: str) -> Any:
        """A note, once it is there."""
        while (value := self._notes.read(name)) is None:
            time.sleep(process.POLL)
        return value


def hosts_of() -> Hosts:
    """Those that have joined (`--distributed`); accelerators are left to their commands.

    Raises:
      ConfigError: this JAX has no notes.
    """
    jax.config.update("jax_platforms", "cpu")
    return Hosts(jax.process_index(), jax.process_count(), Notes(NOTES))


def joined(address: str, count: int, index: int) -> dict[str, str]:
    """The environment in which `--distributed` joins a command's processes.

    Args:
      address: host:port of the first.
      count, index: of the hosts.
    """
    where = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }
    # That of the lineage itself, whose port is taken.
    own = {key: value for key, value in os.environ.items() if key != "JAX_COORDINATOR_BIND_ADDRESS"}
    return own | where


def alone() -> dict[str, str]:
    """The environment of a command of the first host alone."""
    # The chips of a TPU pod begin when the processes of all its hosts do: one of them would wait.
    on_tpus = importlib.util.find_spec("libtpu") is not None
    return os.environ | ({"JAX_PLATFORMS": "cpu"} if on_tpus else {})


def _address() -> str:
    """Where the processes of a command can join: on this host, at a port that is free."""
    with socket.socket() as free:
        free.bind(("", 0))
        return f"{leading_host()}:{free.getsockname()[1]}"
