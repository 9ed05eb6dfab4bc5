"""A finished run: load, score, sample, export."""

from .load import Source, Trained, export, load, locate, read
from .pictures import difference, interpolate, reconstruct
from .sample_sheet import add_sampling_options, complete_sampling_options, open_sampling_world, write_sheet
from .scoring import Scores, score, standard_error
from .scoring_report import add_scoring_options, check_scoring_options, open_scoring_world, report_scores

__all__ = [
    "Scores",
    "Source",
    "Trained",
    "add_sampling_options",
    "add_scoring_options",
    "check_scoring_options",
    "complete_sampling_options",
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
    "score",
    "standard_error",
    "write_sheet",
]
