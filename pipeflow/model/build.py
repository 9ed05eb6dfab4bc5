"""Settings of a model → its steps, cut into parts with their priors."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ..data import Space
from ..flow import Event, FlowPrior, StandardNormal, Step
from .cut import CutConfig, flow_step_positions, scheme_cut
from .families import Family, family_head, family_steps
from .precision import Layout, Precision, set_precision
from .seeding import seeded
from .truncated import MakePrior, Truncated, truncate
from .user_flow import Maker, UserFlow, check_name, own_steps


@dataclass(frozen=True)
class ModelSettings:
    """What the model of a run depends on; `Config.model` takes it out of all settings.

    Attributes:
        flow: the name of a family of flows, or of a flow of the script's own.
        family: shape of the model, where it is one of a family.
        cut: where the borders are; a balanced cut has become explicit.
        precision, layout: of the coupling networks.
        seed: of the initial weights.
    """

    flow: str
    family: Family
    cut: CutConfig
    precision: Precision
    layout: Layout
    seed: int


def steps_of(settings: ModelSettings, pixels: Space, flow: Maker | None) -> list[Step]:
    """The steps of the whole flow at their initial weights.

    Raises:
        ValueError: a flow of a script's own is not there, or one is there that the settings do not name.
    """
    check_name(settings.flow, flow)
    if flow is None:
        return family_steps(settings.family, pixels.shape, settings.seed, pixels.classes)
    return own_steps(flow, settings.seed)


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
    levels, each = (1, len(flow_step_positions(steps))) if flow else (settings.family.levels, settings.family.steps)
    at = scheme_cut(settings.cut, levels, each)
    top_prior = "standard" if flow else settings.family.top_prior
    slices, whole = truncate(steps, at, pixels.shape, top_prior, provisional_prior(settings, flow))
    for piece in (*slices, whole):
        set_precision(piece, settings.precision, settings.layout)
    return dict(enumerate(slices)), whole


def provisional_prior(settings: ModelSettings, flow: Maker | None) -> str | MakePrior:
    """What parts that are not the last learn with: the name of a density, or what makes their heads.

    Raises:
        ValueError: heads are asked for, and the flow of a script's own comes without.
    """
    if settings.cut.provisional_prior != "flow":
        return settings.cut.provisional_prior
    if flow is not None and not isinstance(flow, UserFlow):
        raise ValueError(
            f"cut.provisional_prior is flow, but the flow '{settings.flow}' comes without heads; hand over "
            "pipeflow.UserFlow(steps, head), or use standard or learned."
        )

    def make_prior(border: int, event: Event, remaining: Sequence[Step]) -> StandardNormal:
        with seeded(1_000_003 * (settings.seed + 1) + border):
            if isinstance(flow, UserFlow):
                return FlowPrior(flow.head(event), event)
            return FlowPrior(family_head(settings.family, settings.cut.head, event, remaining), event)

    return make_prior
