"""Real-valued data, which enter a flow as they are: what `pixels` is to images.

Points have a density, so there is nothing to dequantise and nothing to subtract: the log-likelihood starts at 0. Its
unit stays nats or bits/dim = −log p / (D ln 2), which for a density may be negative and depends on the data's scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow import Packet
from .pixels import Pixels
from .rng import Purpose


@dataclass(frozen=True)
class Points:
    """Data in the space that the flow lives in.

    Attributes:
        shape: of a point, such as (D,).
        classes: number of different labels, from 0; 0 where points have none.
        levels: 0, for numbers that are real.
        n: 1, since there is nothing to dequantise.
        nats: 0, the constant of dequantisation.
    """

    shape: tuple[int, ...]
    classes: int = 0
    levels: ClassVar[int] = 0
    n: ClassVar[int] = 1
    nats: ClassVar[float] = 0.0

    @property
    def dims(self) -> int:
        """Number of dimensions of a point."""
        return math.prod(self.shape)

    def dequantise(self, points: Tensor, noise: Tensor | None = None) -> Packet:
        """The points themselves, float32, and a log-likelihood of 0; noise is not used.

        Raises:
            ValueError: whole numbers, or points of another shape.
        """
        if not points.is_floating_point() or points.shape[1:] != self.shape:
            raise ValueError(
                f"Expected real numbers of shape (B, {', '.join(map(str, self.shape))}), "
                f"got {points.dtype} of shape {tuple(points.shape)}."
            )
        return Packet(points.float(), torch.zeros(len(points), device=points.device))

    def noisy(self, points: Tensor, seed: int, purpose: Purpose, epoch: int, index: Tensor) -> Packet:
        """`dequantise`: no noise belongs to points."""
        return self.dequantise(points)

    def quantise(self, z: Tensor) -> Tensor:
        return z

    def bits_per_dim(self, nats: float) -> float:
        """A log-likelihood of one point in nats → bits per dimension."""
        return (0.0 - nats) / (self.dims * math.log(2))


Space = Pixels | Points
"""What the data look like: whole-numbered images or real-valued points."""


def space(event: Sequence[int], levels: int, bits: int, noise: float | None = None, classes: int = 0) -> Space:
    """What a manifest says of the data: shape, values of a stored pixel (0 for points), bits of it, noise, labels."""
    if not levels:
        return Points(tuple(event), classes)
    channels, height, width = event
    return Pixels((channels, height, width), levels, bits, noise, classes)
