"""Settings of a run: dataclasses, their checks, the command line, and the schedule that follows from them."""

from .config import Config
from .describe import Setting, describe
from .parser import from_dict, parse_resume
from .phases import EndToEndConfig, PhaseConfig
from .resume_settings import Resume, settle, with_recorded_micro_batches
from .schedule import Segment, Turn, lessons, micro_batches, multiples, phase_steps, segments, stops, turns

__all__ = [
    "Config",
    "EndToEndConfig",
    "PhaseConfig",
    "Resume",
    "Segment",
    "Setting",
    "Turn",
    "describe",
    "from_dict",
    "lessons",
    "micro_batches",
    "multiples",
    "parse_resume",
    "phase_steps",
    "segments",
    "settle",
    "stops",
    "turns",
    "with_recorded_micro_batches",
]
