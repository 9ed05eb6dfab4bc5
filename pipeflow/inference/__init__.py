"""A finished run: load, score, sample, export."""

from .distributed_sampling import alone, draw, hold
from .load import Source, Trained, export, load, locate, read
from .pictures import difference, each_part, interpolate, reconstruct
from .scoring import Scores, score, standard_error

__all__ = [
    "Scores",
    "Source",
    "Trained",
    "alone",
    "difference",
    "draw",
    "each_part",
    "export",
    "hold",
    "interpolate",
    "load",
    "locate",
    "read",
    "reconstruct",
    "score",
    "standard_error",
]
