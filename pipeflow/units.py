"""Quantities with their units, as people type them: "10Gb/s" for a link, "80GB" for a memory.

Bits and bytes, thousands and 1,024s are mixed up so easily that a unit is always asked for and never guessed.
"""

import argparse
import math
import re
from collections.abc import Callable

_BITS = {"b/s": 1.0, "kb/s": 1e3, "Kb/s": 1e3, "Mb/s": 1e6, "Gb/s": 1e9, "Tb/s": 1e12}
_BYTES = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}


def bits_per_second(text: str) -> float:
    """ "10Gb/s" → 1e10; a ValueError if it is no speed."""
    return _quantity(text, _BITS, "a speed such as 10Gb/s (bits a second: b/s, Kb/s, Mb/s, Gb/s or Tb/s)")


def bytes_of(text: str) -> float:
    """ "80GB" → 8e10; a ValueError if it is no amount of memory."""
    return _quantity(text, _BYTES, "an amount such as 80GB (MB, GB or TB; MiB, GiB or TiB for powers of 1,024)")


def argument(read: Callable[[str], float]) -> Callable[[str], float]:
    """A reader of quantities as the `type` of an argparse option, whose error message is then the reader's."""

    def convert(text: str) -> float:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _quantity(text: str, units: dict[str, float], wanted: str) -> float:
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z/]+)\s*", text)
    try:
        value = float(found[1]) * units[found[2]] if found else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not {wanted}.")
    return value


def rate(images_per_s: float) -> str:
    """Images a second, for people."""
    return f"{images_per_s:,.0f}" if images_per_s >= 1000 else f"{images_per_s:.4g}"
