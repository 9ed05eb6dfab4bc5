"""A finished run: load, score, sample, export."""

from .load import Source, Trained, export, load, locate, read
from .pictures import difference, interpolate, reconstruct
from .sample_sheet import open_sampling_world, sampling_options, write_sheet
from .scoring import Scores, score, standard_error
from .scoring_report import open_scoring_world, report_scores, scoring_options
