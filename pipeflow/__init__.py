"""pipeflow: normalizing flows trained by parts, each part its own process, nothing sent backward."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config
    from .inference import export, load
    from .model import Flow, Glow, GlowConfig
    from .training import fit

__all__ = ["Config", "Flow", "Glow", "GlowConfig", "export", "fit", "load"]

_HOME = {"Config": "config", "GlowConfig": "model", "Flow": "model", "Glow": "model", "fit": "training"}
_HOME |= {"export": "inference", "load": "inference"}


def __getattr__(name: str) -> object:
    """Imports a name when it is first asked for: model and stages need PyTorch alone, the commands need more."""
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
