"""One part at work on one batch: forward, send, loss, backward, update."""

from .cuda_graphs import CudaRecorder, Recorded
from .ema import Average
from .optimizer import NamedParameters, OptimizerName, load_moments, make_optimizer, named_moments
from .pipeline_stage import Carriage, Pipelined
from .stage import Report, Stage
from .update import Eager

__all__ = [
    "Average",
    "Carriage",
    "CudaRecorder",
    "Eager",
    "NamedParameters",
    "OptimizerName",
    "Pipelined",
    "Recorded",
    "Report",
    "Stage",
    "load_moments",
    "make_optimizer",
    "named_moments",
]
