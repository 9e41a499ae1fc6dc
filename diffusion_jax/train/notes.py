"""Notes that the processes of a run leave each other, by name, where they joined.

    notes = Notes("diffusion_jax/lineage")
    notes.write("order/1", {"arguments": ["--config", "digits"]})     the first of a name stays
    notes.read("order/1")                                             None where there is none yet

Unlike a sum over all devices a note needs no device, and nobody waits for it: such a sum ends with
an error where a process comes to it half a minute after the others.
"""
from __future__ import annotations

import contextlib
import json
from typing import Any

from diffusion_jax.build import ConfigError


def client() -> Any:
    """What the processes of a run share notes by; None where there is one process.

    JAX shows it nowhere in public: in a version that keeps it elsewhere there is none.
    """
    found = getattr(_state(), "client", None)
    return found if hasattr(found, "key_value_try_get") else None


def leading_host() -> str:
    """The host of the first process, by the address at which the others reach it.

    Raises:
      ConfigError: there is one process, or this JAX does not say.
    """
    address = getattr(_state(), "coordinator_address", None)
    if not address:
        raise ConfigError("this JAX does not say where its processes joined: install another one")
    return address.rpartition(":")[0]


def _state() -> Any:
    """What JAX knows of the processes that joined."""
    from jax._src import distributed

    return getattr(distributed, "global_state", None)


class Notes:
    """Notes of one kind; a value is JSON, and not None.

    Args:
      kind: goes before their names.

    Raises:
      ConfigError: there is one process, or this JAX has no notes.
    """

    def __init__(self, kind: str):
        self._kind = kind
        self._client = client()
        if self._client is None:
            raise ConfigError("this JAX shares no notes between processes: install another one")

    def write(self, name: str, value: Any) -> None:
        """Leaves a note; where there is one of this name, that one stays."""
        with contextlib.suppress(Exception):  # it is there, or the first process has ended
            self._client.key_value_set(f"{self._kind}/{name}", json.dumps(value))

    def read(self, name: str) -> Any:
        """The note of a name; None where there is none."""
        try:
            return json.loads(self._client.key_value_try_get(f"{self._kind}/{name}"))
        except Exception:  # not there yet, or the first process has ended: then JAX ends this one
            return None
