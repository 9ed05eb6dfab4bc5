"""What flow steps cost on one device, and what travels between two.

FLOP counts predict the small latents of deep levels badly, and profilers report on a run that has already been paid
for. A `Profile` is measured once, from single steps; the cost of any part of any cut is a sum of its entries.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add
from typing import NamedTuple

import numpy as np

from ..flow import Event


@dataclass(frozen=True)
class Cost:
    """The cost of a step, or of a part, on one device.

    Attributes:
        batches: batch sizes that were measured, rising.
        forward_s, backward_s: seconds at each of them.
        update_s: seconds of the gradient's norm, the optimizer and the moving average.
        parameters: how many numbers learn.
        fixed_bytes, saved_bytes: kept from forward to backward, whatever the batch and per image.
        working_bytes: held besides for a moment, per image; the most that any step needs. 0 where it is not measured.
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
            tuple(map(add, self.forward_s, other.forward_s)),
            tuple(map(add, self.backward_s, other.backward_s)),
            self.update_s + other.update_s,
            self.parameters + other.parameters,
            self.fixed_bytes + other.fixed_bytes,
            self.saved_bytes + other.saved_bytes,
            max(self.working_bytes, other.working_bytes),
        )

    def forward(self, images: int) -> float:
        """Seconds of the forward pass of so many images."""
        return _interpolate(self.batches, self.forward_s, images)

    def backward(self, images: int) -> float:
        """Seconds of the backward pass of so many images."""
        return _interpolate(self.batches, self.backward_s, images)

    def seconds(self, images: int) -> float:
        """Seconds of forward, backward and update of so many images."""
        return self.forward(images) + self.backward(images) + self.update_s


def _interpolate(batches: Sequence[int], seconds: Sequence[float], images: int) -> float:
    """Straight lines between what was measured; outside, the nearest line.

    A small batch has overheads that a large one hides: below the smallest batch that was measured, time shrinks at most
    in proportion to the images.
    """
    if len(batches) == 1:
        return seconds[0] * images / batches[0]
    if batches[0] <= images <= batches[-1]:
        return float(np.interp(images, batches, seconds))
    (x0, x1), (y0, y1) = (batches[:2], seconds[:2]) if images < batches[0] else (batches[-2:], seconds[-2:])
    line = y0 + (y1 - y0) * (images - x0) / (x1 - x0)
    return max(line, y0 * images / x0) if images < batches[0] else line


@dataclass(frozen=True)
class Profile:
    """A flow on one device, per flow step; a squeeze counts with the flow step after it, a split with the one before.

    Attributes:
        steps: the cost of each flow step; the first one's forward pass includes drawing the batch.
        priors: the cost of the prior of a part that ends after each flow step.
        packet_shapes: shape of a latent after each flow step, per image.
        packet_bytes: what crosses a border after each flow step, per image.
        state_bytes: weight, gradient and what optimizer and moving average keep, per parameter.
    """

    steps: tuple[Cost, ...]
    priors: tuple[Cost, ...]
    packet_shapes: tuple[Event, ...]
    packet_bytes: tuple[int, ...]
    state_bytes: int

    def parts(self, at: Sequence[int]) -> list[Cost]:
        """The cost of each part of a cut, with its prior; `at`: flow steps before each border."""
        borders = pairwise([0, *at, len(self.steps)])
        return [reduce(add, self.steps[start:end]) + self.priors[end - 1] for start, end in borders]

    def end_to_end(self) -> "Profile":
        """The same flow in one piece, which has no prior but the last."""
        batches = self.steps[0].batches
        nothing = Cost(batches, (0.0,) * len(batches), (0.0,) * len(batches))
        return dataclasses.replace(self, priors=(*[nothing] * (len(self.steps) - 1), self.priors[-1]))

    def border_bytes(self, at: Sequence[int]) -> list[int]:
        """Bytes that cross each border of a cut, per image."""
        return [self.packet_bytes[border - 1] for border in at]

    def memory(self, cost: Cost, kept: int, at_a_time: int) -> float:
        """Bytes that a part needs besides packets, working on `at_a_time` images, with `kept` not yet gone back."""
        activations = cost.fixed_bytes + cost.saved_bytes * kept + cost.working_bytes * at_a_time
        return self.state_bytes * cost.parameters + activations


class Link(NamedTuple):
    """What joins two devices, in each direction; both directions work at once.

    Attributes:
        bits_per_s: its speed.
        latency_s: seconds until what was sent begins to arrive.
    """

    bits_per_s: float
    latency_s: float = 0.0

    def seconds(self, size: float) -> float:
        """Seconds that `size` bytes keep it busy."""
        return 8 * size / self.bits_per_s

    def averaging(self, parameters: int, processes: int) -> float:
        """Seconds in which so many processes average float32 gradients over a ring of such links."""
        return self.seconds(ring_bytes(parameters, processes)) + 2 * (processes - 1) * self.latency_s


def ring_bytes(parameters: int, processes: int) -> float:
    """Bytes that each process sends to average float32 gradients over a ring: 2 (N − 1)/N · 4 per parameter.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
    """
    return 2 * (processes - 1) / processes * 4 * parameters
