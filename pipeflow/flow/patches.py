"""Patches: an image as a grid of patches, which are the tokens of the transformers in a flow."""

import math

from torch import Tensor

from .step import Event, Step


class Patches(Step):
    """(C, H, W) → (p²C, H/p, W/p), every p×p patch into channels, and z' = 2z; log|det| = C·H·W·ln 2.

    The factor takes the pixels' cube (−½, ½) to (−1, 1), where the published flows on patches have it. The channels
    of a patch are ordered by row, column, colour.

    Args:
        patch: p; sides that it does not divide are a RuntimeError.
    """

    place = "opens"

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        channels, height, width = self.out_shape(tuple(z.shape[1:]))
        out = z.view(len(z), -1, height, self.patch, width, self.patch).permute(0, 3, 5, 1, 2, 4)
        return 2 * out.reshape(len(z), channels, height, width), z.new_full((len(z),), math.log(2) * z[0].numel())

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        p, (height, width) = self.patch, z.shape[2:]
        out = z.view(len(z), p, p, -1, height, width).permute(0, 3, 4, 1, 5, 2)
        return 0.5 * out.reshape(len(z), -1, p * height, p * width)

    def out_shape(self, event: Event) -> Event:
        channels, height, width = event
        return channels * self.patch**2, height // self.patch, width // self.patch

    def extra_repr(self) -> str:
        return f"{self.patch}×{self.patch}"
