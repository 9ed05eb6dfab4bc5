"""A finished run: load, score, sample, export."""

from .load import Source, Trained, export, load, locate, read
from .pictures import difference, interpolate, reconstruct
from .sample_sheet import open_sampling_world, sampling_options, write_sheet
from .scoring import Scores, score, standard_error
from .scoring_report import open_scoring_world, report_scores, scoring_options

__all__ = [
    "Scores",
    "Source",
    "Trained",
    "difference",
    "export",
    "interpolate",
    "load",
    "locate",
    "open_sampling_world",
    "open_scoring_world",
    "read",
    "reconstruct",
    "report_scores",
    "sampling_options",
    "score",
    "scoring_options",
    "standard_error",
    "write_sheet",
]
