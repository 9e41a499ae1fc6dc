"""What a page may ask of the machine and send to it: who reaches it types what they like, and none
of that names a file."""
from __future__ import annotations

from typing import Any

from diffusion_jax.build import ConfigError, number

PICTURES = 64
"""Of a request."""
STEPS = 1000
EDITS = 100
"""Of a session."""
LETTERS = 4000
UPLOAD = 16 * 2**20
"""Bytes of a file."""
PIXELS = 2**24
"""Of a picture that is sent."""
WAITING = 200
"""Requests that wait for the device: further ones are refused."""


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within bounds; `ConfigError` for anything else."""
    return int(number(name, value, least, most, integer=True))


def text(name: str, value: Any) -> str | None:
    """A text without the space around it, None for an empty one; `ConfigError` for a long one, or
    for anything else."""
    if not isinstance(value, str | None) or len(value or "") > LETTERS:
        raise ConfigError(f"{name} is a text of at most {LETTERS} letters")
    return (value or "").strip() or None


def file(data: bytes | None) -> bytes:
    """The bytes of a file that was sent; `ConfigError` for none, or too many."""
    if not data or len(data) > UPLOAD:
        raise ConfigError(f"send a file of at most {UPLOAD // 2**20} MB")
    return data
