"""The flows that settings alone describe, by the name of their section: what each makes of its settings."""

from collections.abc import Sequence
from itertools import pairwise

from ..flow import Event, Step
from .cut import CutConfig, HeadConfig, scheme_cut
from .glow import GlowConfig, glow_steps
from .head import glow_head
from .jet import JetConfig, jet_head, jet_steps
from .seeding import begin_like
from .tarflow import TarFlowConfig, tarflow_head, tarflow_steps

FAMILIES = ("glow", "jet", "tarflow")
Family = GlowConfig | JetConfig | TarFlowConfig
"""Settings of such a flow."""


def family_steps(family: Family, image: Event, seed: int = 0, classes: int = 0) -> list[Step]:
    """The steps for images of shape (C, H, W) at their initial weights; a ValueError where the images do not fit.

    `classes` is how many labels the images have, 0 for none; a Glow takes none.
    """
    match family:
        case GlowConfig():
            return glow_steps(family, image, seed)
        case JetConfig():
            return jet_steps(family, image, seed, classes)
        case TarFlowConfig():
            return tarflow_steps(family, image, seed, classes)


def family_head(family: Family, head: HeadConfig, event: Event, remaining: Sequence[Step]) -> list[Step]:
    """The steps of a head for latents of shape `event`, behind which the steps `remaining` follow."""
    match family:
        case GlowConfig():
            return glow_head(family, head, event, remaining)
        case JetConfig():
            steps = jet_head(family, head, event, remaining)
        case TarFlowConfig():
            steps = tarflow_head(family, head, event, remaining)
    if head.start == "model":
        for step, model in zip(steps, remaining, strict=False):
            begin_like(step, model)
    return steps


def family_cut(cut: CutConfig, family: Family) -> tuple[int, ...]:
    """The borders of a scheme that needs no measurement; a ValueError where it has no place for them."""
    return scheme_cut(cut, family.levels, family.steps)


def family_caution(family: Family, borders: Sequence[int]) -> list[str]:
    """A sentence where parts with these ends, in flow steps, could be cut better."""
    single = [part for part, (start, end) in enumerate(pairwise([0, *borders]), 1) if end - start == 1]
    if not isinstance(family, TarFlowConfig) or not single:
        return []
    return [
        f"Part {', '.join(map(str, single))} has a single block, which goes through the patches in one direction only; "
        "give every part two blocks or more."
    ]
