"""A finished run: load, score, sample, export."""

from .load import Source, Trained, export, load, locate, read
from .pictures import difference, each_part, interpolate, reconstruct
from .sample_sheet import open_sampling_world, write_sheet
from .sampling_options import add_sampling_options, sampling_options
from .scoring import Scores, score, standard_error
from .scoring_options import ScoringOptions, add_scoring_options
from .scoring_report import open_scoring_world, report_scores

__all__ = [
    "Scores",
    "ScoringOptions",
    "Source",
    "Trained",
    "add_sampling_options",
    "add_scoring_options",
    "difference",
    "each_part",
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
    "standard_error",
    "write_sheet",
]
