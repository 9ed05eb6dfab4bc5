"""What a flow costs on one device, flow step by flow step: seconds, parameters, bytes.

FLOP counts predict the small latents of deep levels badly, and profilers report on a run that has already been paid
for. A `Profile` is measured once, from single steps; the cost of any part of any cut is a sum of its entries.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cost:
    """What a step, or a part, costs on one device.

    Attributes:
        batches: sizes that were measured, rising.
        forward_s, backward_s: seconds at each of them.
        update_s: seconds of the gradient's norm and the optimizer.
        parameters: how many numbers learn.
        fixed_bytes: kept from forward to backward, whatever the batch.
        saved_bytes: kept from forward to backward, an image.
        working_bytes: held besides for a moment, an image; the most that any step needs. 0 where it is not measured.
    """

    batches: tuple[int, ...]
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    update_s: float = 0.0
    parameters: int = 0
    fixed_bytes: float = 0.0
    saved_bytes: float = 0.0
    working_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        assert self.batches == other.batches, "costs are added at the same batch sizes"
        return Cost(
            self.batches,
            tuple(mine + theirs for mine, theirs in zip(self.forward_s, other.forward_s, strict=True)),
            tuple(mine + theirs for mine, theirs in zip(self.backward_s, other.backward_s, strict=True)),
            self.update_s + other.update_s,
            self.parameters + other.parameters,
            self.fixed_bytes + other.fixed_bytes,
            self.saved_bytes + other.saved_bytes,
            max(self.working_bytes, other.working_bytes),
        )

    def forward(self, images: int) -> float:
        """Seconds of the forward pass of so many images."""
        return _between(self.batches, self.forward_s, images)

    def backward(self, images: int) -> float:
        """Seconds of the backward pass of so many images."""
        return _between(self.batches, self.backward_s, images)

    def tick(self, images: int) -> float:
        """Seconds of forward, backward and update of so many images."""
        return self.forward(images) + self.backward(images) + self.update_s


def _between(batches: Sequence[int], seconds: Sequence[float], images: int) -> float:
    """Straight lines between what was measured; outside, the nearest line, but never better than in proportion.

    A small batch has overheads that a large one hides: below the smallest batch that was measured, time shrinks at most
    in proportion to the images.
    """
    if batches[0] <= images <= batches[-1] or len(batches) == 1:
        if len(batches) == 1:
            return seconds[0] * images / batches[0]
        return float(np.interp(images, batches, seconds))
    (x0, x1), (y0, y1) = (batches[:2], seconds[:2]) if images < batches[0] else (batches[-2:], seconds[-2:])
    line = y0 + (y1 - y0) * (images - x0) / (x1 - x0)
    return max(line, y0 * images / x0) if images < batches[0] else line


@dataclass(frozen=True)
class Profile:
    """A flow on one device, by flow step; a squeeze counts with the flow step behind it, a split with the one before.

    Attributes:
        steps: what each flow step costs; the first one's forward pass includes drawing the batch.
        priors: what the prior of a flow that is truncated behind each flow step costs.
        sent_bytes: what crosses a border behind each flow step, an image.
        state_bytes: weight, gradient and what optimizer and average keep, a parameter.
    """

    steps: tuple[Cost, ...]
    priors: tuple[Cost, ...]
    sent_bytes: tuple[int, ...]
    state_bytes: int

    def parts(self, at: Sequence[int]) -> list[Cost]:
        """The parts of a cut, each with its prior: flow steps before each border → costs."""
        borders = [0, *at, len(self.steps)]
        return [total(self.steps[start:end]) + self.priors[end - 1] for start, end in pairwise(borders)]

    def slices(self, at: Sequence[int]) -> list[Cost]:
        """Like `parts`, for ways to train that know no truncated flows: only the last slice has a prior."""
        borders = [0, *at, len(self.steps)]
        costs = [total(self.steps[start:end]) for start, end in pairwise(borders)]
        return [*costs[:-1], costs[-1] + self.priors[-1]]

    def sent(self, at: Sequence[int]) -> list[int]:
        """Bytes that cross each border of a cut, an image."""
        return [self.sent_bytes[border - 1] for border in at]

    def memory(self, cost: Cost, kept: int, at_a_time: int) -> float:
        """Bytes that a part needs besides packets.

        Args:
            cost: of the part.
            kept: images whose backward pass is still to come.
            at_a_time: images that it works on.
        """
        activations = cost.fixed_bytes + cost.saved_bytes * kept + cost.working_bytes * at_a_time
        return self.state_bytes * cost.parameters + activations

    def as_dict(self) -> dict[str, Any]:
        """As plain lists, dicts and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Profile":
        """What `as_dict` made, from JSON; KeyError or TypeError if it is something else."""

        def costs(entries: list[dict[str, Any]]) -> tuple[Cost, ...]:
            lists = ("batches", "forward_s", "backward_s")
            return tuple(Cost(**{**entry, **{name: tuple(entry[name]) for name in lists}}) for entry in entries)

        sent = tuple(values["sent_bytes"])
        return cls(costs(values["steps"]), costs(values["priors"]), sent, values["state_bytes"])


def total(costs: Sequence[Cost]) -> Cost:
    """The cost of all of them, one after another; at least one."""
    sum_, *rest = costs
    for cost in rest:
        sum_ = sum_ + cost
    return sum_
