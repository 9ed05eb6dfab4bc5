"""Settings of a run: dataclasses, their checks, the command line, and the schedule that follows from them."""

from .config import Config
from .describe import Setting, describe
from .parser import from_dict, parse_resume
from .phases import EndToEndConfig, PhaseConfig
from .resume_settings import Resume, settle, settled_restarts, with_recorded_micro_batches
from .schedule import Segment, Turn, lessons, micro_batches, multiples, phase_steps, segments, stops, turns
from .yaml_text import read_file

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
    "read_file",
    "segments",
    "settle",
    "settled_restarts",
    "stops",
    "turns",
    "with_recorded_micro_batches",
]
