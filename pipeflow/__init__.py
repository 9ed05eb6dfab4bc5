"""pipeflow: normalizing flows trained by parts, each part its own process; by parts, nothing is sent backward."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config, EndToEndConfig, PhaseConfig
    from .data import DataConfig
    from .distributed import ParallelConfig
    from .inference import export, load
    from .model import CutConfig, Flow, Glow, GlowConfig, HeadConfig, JetConfig, TarFlowConfig, UserFlow
    from .storage import CheckpointConfig
    from .training import fit

__all__ = [
    "CheckpointConfig",
    "Config",
    "CutConfig",
    "DataConfig",
    "EndToEndConfig",
    "Flow",
    "Glow",
    "GlowConfig",
    "HeadConfig",
    "JetConfig",
    "ParallelConfig",
    "PhaseConfig",
    "TarFlowConfig",
    "UserFlow",
    "export",
    "fit",
    "load",
]

_HOME = {"DataConfig": "data", "ParallelConfig": "distributed", "CheckpointConfig": "storage", "fit": "training"}
_HOME |= dict.fromkeys(["Config", "EndToEndConfig", "PhaseConfig"], "config")
_HOME |= dict.fromkeys(
    ["CutConfig", "Flow", "Glow", "GlowConfig", "HeadConfig", "JetConfig", "TarFlowConfig", "UserFlow"], "model"
)
_HOME |= dict.fromkeys(["export", "load"], "inference")


def __getattr__(name: str) -> object:
    """Imports a name when it is first asked for: model and stages need PyTorch alone, the commands need more."""
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
