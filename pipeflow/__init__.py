"""pipeflow: normalizing flows trained by parts, each part its own process, nothing sent backward."""

from .glow import GlowConfig
from .model import Flow, Glow

__all__ = ["Flow", "Glow", "GlowConfig"]
