"""Squeeze: trades resolution for channels, so that couplings and 1×1 convolutions can mix neighbouring pixels."""

from torch import Tensor
from torch.nn import functional as F

from .step import Event, Step


class Squeeze(Step):
    """(C, H, W) → (4C, H/2, W/2), every 2×2 block of pixels into channels; log|det| = 0.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", 2017, §3.6. Odd sides: RuntimeError.
    """

    place = "opens"

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(z, 2), z.new_zeros(len(z))

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        return F.pixel_shuffle(z, 2)

    def out_shape(self, event: Event) -> Event:
        channels, height, width = event
        return 4 * channels, height // 2, width // 2
