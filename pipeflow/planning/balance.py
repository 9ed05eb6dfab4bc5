"""Measured step times → the cut whose slowest part is as fast as possible.

Multiply-adds predict a GPU's time badly at the small latents of the deep levels; the clock does not. Steps of one kind
and the same shapes take equally long, so each is measured once.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch

from ..flow import Event, Step
from .measure import measure
from .profile import Cost

Additive = TypeVar("Additive", float, Cost)


def measure_steps(steps: Sequence[Step], event: Event, batch: int, device: torch.device) -> list[float]:
    """Seconds of forward, backward and update of every step.

    Args:
        steps: the whole flow; neither changed nor moved.
        event: shape of what enters.
        batch: images, as in the run.
        device: where the run takes place.
    """
    return [cost.tick(batch) for cost in measure(steps, event, (batch,), device)]


def flow_step_costs(steps: Sequence[Step], costs: Sequence[Additive]) -> list[Additive]:
    """Costs of each flow step, with those of the squeeze that opens it and the split that closes it."""
    found: list[Additive] = []
    opening: list[Additive] = []
    for step, cost in zip(steps, costs, strict=True):
        if step.place == "opens":
            opening.append(cost)
        elif step.place == "closes":
            found[-1] = found[-1] + cost
        else:
            for before in opening:
                cost = before + cost
            found.append(cost)
            opening = []
    return found


def balanced_cut(costs: Sequence[float], parts: int, carry: Sequence[float] | None = None) -> tuple[int, ...]:
    """The borders with the smallest possible largest part; among equals, the parts before the largest are balanced too.

    Args:
        costs: seconds of each flow step.
        parts: number of parts.
        carry: seconds that a packet takes over a border behind each flow step; the largest of them counts like a part.
            Links take no time by default.

    Raises:
        ValueError: more parts than flow steps.
    """
    if parts > len(costs):
        raise ValueError(f"cut.parts is {parts}, but the flow has only {len(costs)} flow steps.")
    carry = carry or [0.0] * len(costs)
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[end]: (largest part, borders) of the first `end` flow steps in so many parts.
    best: dict[int, tuple[float, tuple[int, ...]]] = {end: (before[end], ()) for end in range(1, len(costs) + 1)}
    for _ in range(parts - 1):
        best = {
            end: min((max(best[border][0], carry[border - 1], before[end] - before[border]), (*best[border][1], border))
                     for border in best if border < end)
            for end in range(min(best) + 1, len(costs) + 1)
        }  # fmt: skip
    return best[len(costs)][1]
