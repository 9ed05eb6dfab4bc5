"""pipeflow: normalizing flows trained by parts, each part its own process, nothing sent backward."""

from .config import Config
from .glow import GlowConfig
from .model import Flow, Glow
from .trained import export, load
from .trainer import fit

__all__ = ["Config", "Flow", "Glow", "GlowConfig", "export", "fit", "load"]
