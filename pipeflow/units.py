"""Quantities with their units, as people type and read them: "10Gb/s" for a link, "80GB" for a memory.

Bits and bytes, thousands and 1,024s are mixed up so easily that a unit is always asked for and never guessed.
"""

import argparse
import math
import re
from collections.abc import Sequence

_BITS = {"b/s": 1.0, "kb/s": 1e3, "Kb/s": 1e3, "Mb/s": 1e6, "Gb/s": 1e9, "Tb/s": 1e12}
_AMOUNTS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}


_DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIMES = (("ms", 1e-3, 1.0), ("s", 1.0, 180.0), ("min", 60.0, 10800.0), ("h", 3600.0, math.inf))
_SPEEDS = (("Tb/s", 1e12), ("Gb/s", 1e9), ("Mb/s", 1e6), ("kb/s", 1e3), ("b/s", 1.0))
_BYTES = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("bytes", 1.0))


class QuantityError(argparse.ArgumentTypeError, ValueError):
    """What is no quantity; argparse repeats this sentence, where it would make one of its own for a ValueError."""


def bits_per_second(text: str) -> float:
    """ "10Gb/s" → 1e10; a ValueError if it is no speed."""
    return _quantity(text, _BITS, "a speed such as 10Gb/s (bits a second: b/s, Kb/s, Mb/s, Gb/s or Tb/s)")


def bytes_of(text: str) -> float:
    """ "80GB" → 8e10; a ValueError if it is no amount of memory."""
    return _quantity(text, _AMOUNTS, "an amount such as 80GB (MB, GB or TB; MiB, GiB or TiB for powers of 1,024)")


def seconds_of(text: str) -> float:
    """ "5000h" → 1.8e7; a ValueError if it is no time."""
    return _quantity(text, _DURATIONS, "a time such as 5000h (us, ms, s, min, h or d)")


def _quantity(text: str, units: dict[str, float], wanted: str) -> float:
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z/]+)\s*", text)
    try:
        value = float(found[1]) * units[found[2]] if found else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < math.inf:
        raise QuantityError(f"{text!r} is not {wanted}.")
    return value


def rate(images_per_s: float) -> str:
    """Images a second, for people."""
    return f"{images_per_s:,.0f}" if images_per_s >= 1000 else f"{images_per_s:.4g}"


def speed(bits_per_s: float) -> str:
    """A link's speed, for people."""
    unit, size = _fitting(_SPEEDS, bits_per_s)
    return f"{bits_per_s / size:.3g} {unit}"


def duration(seconds: float) -> str:
    """Seconds as milliseconds, seconds, minutes or hours."""
    unit, size = time_unit(seconds)
    return f"{seconds / size:.3g} {unit}"


def amount(size: float) -> str:
    """Bytes with the unit that fits."""
    unit, divisor = byte_unit(size)
    return f"{size / divisor:.4g} {unit}"


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which to say so many seconds, and how many seconds it has."""
    return next((unit, size) for unit, size, most in _TIMES if seconds < most)


def byte_unit(size: float) -> tuple[str, float]:
    """The unit in which to say so many bytes, and how many bytes it has."""
    return _fitting(_BYTES, size)


def _fitting(units: Sequence[tuple[str, float]], size: float) -> tuple[str, float]:
    """The largest unit that a size has at least one of, or the last."""
    return next((unit for unit in units if size >= unit[1]), units[-1])
