"""Settings of a model → its steps, cut into parts with their priors."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ..data import Space
from ..flow import Step
from .cut import CutConfig, flow_step_positions, scheme_cut
from .glow import GlowConfig, glow_steps
from .precision import Layout, Precision, set_precision
from .truncated import Truncated, truncate
from .user_flow import Maker, check_name, own_steps


@dataclass(frozen=True)
class ModelSettings:
    """What the model of a run depends on; `Config.model` takes it out of all settings.

    Attributes:
        flow: "glow", or the name of a flow of the script's own.
        glow: shape of the model, where it is a Glow.
        cut: where the borders are; a balanced cut has become explicit.
        precision, layout: of the coupling networks.
        seed: of the initial weights.
    """

    flow: str
    glow: GlowConfig
    cut: CutConfig
    precision: Precision
    layout: Layout
    seed: int


def steps_of(settings: ModelSettings, pixels: Space, flow: Maker | None) -> list[Step]:
    """The steps of the whole flow at their initial weights.

    Raises:
        ValueError: a flow that is not a Glow is not there, or one is there that the settings do not name.
    """
    check_name(settings.flow, flow)
    return glow_steps(settings.glow, pixels.shape, settings.seed) if flow is None else own_steps(flow, settings.seed)


def build(settings: ModelSettings, pixels: Space, flow: Maker | None = None) -> tuple[dict[int, Truncated], Truncated]:
    """The model at its initial weights, the same in every process.

    A flow of a script's own counts as one level, and ends in a standard normal.

    Returns:
        Its slices by position, and the whole, which shares their modules.
    """
    return _cut_and_prepare(settings, steps_of(settings, pixels, flow), pixels, flow)


def build_parts(
    settings: ModelSettings, pixels: Space, positions: Iterable[int], flow: Maker | None = None
) -> list[Truncated]:
    """The slices of the model, of which only those at `positions` have memory for their weights, which are not set.

    The steps of a script's own flow can only be made all at once; all of them have memory until the caller drops them.
    """
    with nullcontext() if flow else torch.device("meta"):
        steps = steps_of(settings, pixels, flow)
    slices, _ = _cut_and_prepare(settings, steps, pixels, flow)
    if flow is None:
        for position in positions:
            slices[position].part.to_empty(device="cpu")
    return list(slices.values())


def _cut_and_prepare(
    settings: ModelSettings, steps: list[Step], pixels: Space, flow: Maker | None
) -> tuple[dict[int, Truncated], Truncated]:
    levels = 1 if flow else settings.glow.levels
    at = scheme_cut(settings.cut, levels, len(flow_step_positions(steps)) // levels)
    top_prior = "standard" if flow else settings.glow.top_prior
    slices, whole = truncate(steps, at, pixels.shape, top_prior, settings.cut.provisional_prior)
    set_precision(whole, settings.precision, settings.layout)
    return dict(enumerate(slices)), whole
