"""Numbers for people: three digits and the prefix of their unit."""
from __future__ import annotations

import math

PREFIXES = (
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)
"""Of units, the largest first."""


def scaled(value: float, unit: str) -> str:
    """A number with three digits or more, and the unit that fits it.

    Example:
      >>> scaled(1.234e9, "FLOP")
      '1.23 GFLOP'
    """
    if not value:
        return f"0 {unit}"
    fitting = (pair for pair in PREFIXES if abs(value) >= pair[0])
    factor, prefix = next(fitting, PREFIXES[-1])
    number = value / factor
    digits = max(0, 2 - int(math.log10(abs(number))))
    return f"{number:,.{digits}f} {prefix}{unit}"


def duration(seconds: float) -> str:
    """A time in hours, or in seconds where it is less than a tenth of an hour.

    Example:
      >>> duration(5400), duration(12.3)
      ('1.50 h', '12.3 s')
    """
    return scaled(seconds, "s") if seconds < 360 else f"{seconds / 3600:,.2f} h"
