"""A part: a slice of the flat list of steps. Cutting a model into parts and joining parts back into a model.

`torch.distributed.pipelining` splits a traced graph and renames what it finds; here a part keeps the global names of
its parameters (`steps.17.coupling.…`), so that joining is a union of dicts and any checkpoint fits any cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from ..flow import Event, Step
from ..settings import AtLeast1, settings
from .part import Part


@settings("cut.head")
@dataclass(frozen=True)
class HeadConfig:
    """The small flow behind a border (`cut.provisional_prior: flow`).

    Attributes:
        steps: flow steps per level that remains of the model, of a flow without levels in all; at most those that
            remain.
        hidden: width of a head's networks; None takes half of the model's.
        start: initial weights: "random", or as the "model" goes on: each step of a head begins as the step of the model
            that it stands for, as far as it is as wide, so that what a part learns for its head also suits the next
            part. In a Glow a 1×1 convolution then stands for the steps of a level that a head leaves out.
        depth: layers of each transformer; for a Jet or a TarFlow only.
    """

    steps: AtLeast1 = 1
    hidden: AtLeast1 | None = None
    start: Literal["random", "model"] = "random"
    depth: AtLeast1 = 1


@settings("cut")
@dataclass(frozen=True)
class CutConfig:
    """Where the borders are.

    Attributes:
        scheme: "by_blocks" (a border after each level), "across_blocks" (a border in the middle of each of the first
            parts − 1 levels), both equal parts where a flow has no levels; "explicit" (`at`) or "balanced" (from
            measured step times; becomes explicit).
        parts: number of parts; never taken from the number of processes.
        at: how many flow steps lie before each border; for "explicit" only.
        provisional_prior: prior of every part but the last: "standard" normal, a "learned" normal per channel, or a
            "flow": a head, which stands in for what remains of the model while a part learns and is then dropped.
        head: size of the heads; for the provisional prior "flow" only.
    """

    scheme: Literal["by_blocks", "across_blocks", "balanced", "explicit"] = "across_blocks"
    parts: AtLeast1 = 3
    at: list[int] | None = None
    provisional_prior: Literal["standard", "learned", "flow"] = "standard"
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        if (self.at is not None) != (self.scheme == "explicit"):
            raise ValueError(
                f"cut.at is {self.at} with cut.scheme {self.scheme}; borders are listed for the scheme explicit, "
                "and only for it."
            )
        if self.at is not None and len(self.at) != self.parts - 1:
            raise ValueError(
                f"cut.at lists {len(self.at)} borders, but {self.parts} parts (cut.parts) have {self.parts - 1}."
            )


def check_cut(at: Sequence[int], flow_steps: int) -> tuple[int, ...]:
    """The borders as given, or a ValueError that says why they cut nothing."""
    if list(at) != sorted(set(at)) or any(not 0 < border < flow_steps for border in at):
        raise ValueError(
            f"A cut at {list(at)} is not possible: borders must rise, none twice, each between 1 and {flow_steps - 1} "
            f"(the flow has {flow_steps} flow steps)."
        )
    return tuple(at)


def scheme_cut(config: CutConfig, levels: int, steps: int) -> tuple[int, ...]:
    """The borders of a scheme that needs no measurement, for `levels` × `steps` flow steps; `steps` without levels (0).

    Raises:
        ValueError: the scheme has no place for so many borders.
    """
    assert config.scheme != "balanced", "a balanced cut is measured first and becomes explicit"
    if config.scheme == "explicit":
        return check_cut(config.at or [], max(levels, 1) * steps)
    borders = range(1, config.parts)
    if not levels:
        if config.parts > steps:
            raise ValueError(f"cut.parts is {config.parts}, but the flow has only {steps} flow steps.")
        return tuple(steps * border // config.parts for border in borders)
    if config.scheme == "by_blocks":
        most, at = levels, [steps * border for border in borders]
    else:
        most, at = (levels + 1 if steps > 1 else 1), [steps * (border - 1) + steps // 2 for border in borders]
    if config.parts > most:
        raise ValueError(
            f"cut.scheme {config.scheme} makes at most {most} parts of {levels} levels of {steps} flow steps, not "
            f"{config.parts}; use fewer parts, or the scheme balanced or explicit."
        )
    return check_cut(at, levels * steps)


def flow_steps_behind(parts: Sequence[Part]) -> list[int]:
    """How many flow steps lie before the end of each part, counted from the first of them."""
    return list(accumulate(len(flow_step_positions([step for _, step in part.chain()])) for part in parts))


def flow_step_positions(steps: Sequence[Step]) -> list[int]:
    """Indices of the steps that a cut counts."""
    return [index for index, step in enumerate(steps) if step.place == "step"]


def cut_steps(steps: Sequence[Step], at: Sequence[int], event: Event) -> list[Part]:
    """Slices the flow.

    Args:
        steps: the whole flow.
        at: how many flow steps lie before each border.
        event: shape of what enters the flow.

    Returns:
        len(at) + 1 parts that share the given modules. A step that "opens" goes to the part after the border, one that
        "closes" to the part before it.
    """
    positions = flow_step_positions(steps)
    ends = []
    for border in check_cut(at, len(positions)):
        end = positions[border - 1] + 1
        while steps[end].place == "closes":
            end += 1
        ends.append(end)
    parts = []
    for start, end in zip([0, *ends], [*ends, len(steps)], strict=True):
        parts.append(Part({index: steps[index] for index in range(start, end)}, event))
        event = parts[-1].event_out
    return parts
