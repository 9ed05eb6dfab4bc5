"""The flows that settings alone describe, by the name of their section: what each makes of its settings."""

from collections.abc import Sequence

from ..flow import Event, Step
from .cut import CutConfig, HeadConfig, scheme_cut
from .glow import GlowConfig, glow_steps
from .head import glow_head
from .jet import JetConfig, jet_head, jet_steps

FAMILIES = ("glow", "jet")
Family = GlowConfig | JetConfig
"""Settings of such a flow."""


def family_steps(family: Family, image: Event, seed: int = 0) -> list[Step]:
    """The steps for images of shape (C, H, W) at their initial weights; a ValueError where the images do not fit."""
    return glow_steps(family, image, seed) if isinstance(family, GlowConfig) else jet_steps(family, image, seed)


def family_head(family: Family, head: HeadConfig, event: Event, remaining: Sequence[Step]) -> list[Step]:
    """The steps of a head for latents of shape `event`, behind which the steps `remaining` follow."""
    if isinstance(family, GlowConfig):
        return glow_head(family, head, event, remaining)
    return jet_head(family, head, event)


def family_cut(cut: CutConfig, family: Family) -> tuple[int, ...]:
    """The borders of a scheme that needs no measurement; a ValueError where it has no place for them."""
    return scheme_cut(cut, family.levels, family.steps)
