"""A run: from settings to result.json."""

from .fit import fit

__all__ = ["fit"]
