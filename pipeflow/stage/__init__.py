"""One part at work on one batch: forward, send, loss, backward, update."""

from .adaptive_clip import AdaptiveClip
from .cuda_graphs import CudaRecorder, RecordedStep, Recorder
from .ema import Average
from .optimizer import NORM, NamedParameters, OptimizerName, load_moments, make_optimizer, named_moments
from .pipeline_stage import PipelineModule, PipelineStage
from .report import Report
from .stage import BaseStage, Stage
from .training_step import EagerStep
from .update import Update

__all__ = [
    "NORM",
    "AdaptiveClip",
    "Average",
    "BaseStage",
    "CudaRecorder",
    "EagerStep",
    "NamedParameters",
    "OptimizerName",
    "PipelineModule",
    "PipelineStage",
    "RecordedStep",
    "Recorder",
    "Report",
    "Stage",
    "Update",
    "load_moments",
    "make_optimizer",
    "named_moments",
]
