"""Whole-numbered pixels ↔ the continuous space that a flow lives in.

`torchvision`'s `ToTensor` divides by 255 and adds no noise; a flow needs x̃ = (x + u)/n − ½ with u ~ U(0, 1), n the
number of levels, and the constant −D·ln n that makes its likelihood one of the discrete images (Theis, van den Oord and
Bethge, "A note on the evaluation of generative models", 2016). Both live here, with their exact inverse.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow import Packet
from .rng import Purpose, normal, uniform


@dataclass(frozen=True)
class Pixels:
    """How whole numbers stand for images.

    Attributes:
        shape: (C, H, W) of an image.
        levels: number of different values of a stored pixel (256; 17 for scikit-learn's digits).
        bits: bits kept of an 8-bit pixel; 8 keeps all of them.
        noise: standard deviation of Gaussian noise on the middle of a pixel's cell, in place of uniform noise in it;
            then likelihoods are those of a density.
        classes: number of different labels, from 0; 0 where images have none.
    """

    shape: tuple[int, int, int]
    levels: int = 256
    bits: int = 8
    noise: float | None = None
    classes: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"data.bits is {self.bits}; it must lie between 1 and 8.")
        if self.bits < 8 and self.levels != 256:
            raise ValueError(f"data.bits is {self.bits}, but these images have {self.levels} levels; leave it at 8.")

    @property
    def dims(self) -> int:
        """Number of dimensions of an image, colours included."""
        return math.prod(self.shape)

    @property
    def n(self) -> int:
        """Number of levels that the flow sees."""
        return self.levels if self.bits == 8 else 2**self.bits

    @property
    def nats(self) -> float:
        """What dequantisation takes from the log-likelihood of an image: D·ln n, 0 where it is that of a density."""
        return 0.0 if self.noise else self.dims * math.log(self.n)

    def dequantise(self, images: Tensor, noise: Tensor | None) -> Packet:
        """Spreads every pixel over its cell.

        Args:
            images: uint8, shape (B, C, H, W), values below `levels`.
            noise: float32 in (0, 1), or standard normal where it is Gaussian, shape (B, D); None puts every pixel into
                the middle of its cell.

        Returns:
            Packet with z in (−½, ½), float32, shape (B, C, H, W), and logp = −D·ln n in nats, 0 for a density.

        Raises:
            ValueError: images of another dtype or shape; on the CPU also values that are no levels. On a GPU the host
                would wait for them.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise ValueError(
                f"Expected uint8 images of shape (B, {', '.join(map(str, self.shape))}), "
                f"got {images.dtype} of shape {tuple(images.shape)}."
            )
        if self.levels < 256 and not images.is_cuda and int(images.max()) >= self.levels:
            raise ValueError(f"A pixel is {int(images.max())}; these images have {self.levels} levels, from 0.")
        x = (images >> (8 - self.bits)).float()
        u = 0.5 if noise is None or self.noise else noise.view(images.shape)
        logp = torch.full((len(images),), -self.nats, device=images.device)
        # Divided by a tensor: a GPU multiplies by the reciprocal of a number, which for 17 levels is another result.
        z = (x + u) / torch.full((), self.n, dtype=x.dtype, device=x.device) - 0.5
        return Packet(z + self.noise * noise.view(images.shape) if self.noise and noise is not None else z, logp)

    def noisy(self, images: Tensor, seed: int, purpose: Purpose, epoch: int, index: Tensor) -> Packet:
        """`dequantise` with the noise that belongs to (seed, purpose, epoch, image)."""
        draw = normal if self.noise else uniform
        return self.dequantise(images, draw(seed, purpose, epoch, index, self.dims))

    def quantise(self, z: Tensor) -> Tensor:
        """The images whose cells hold z: uint8, shape (B, C, H, W); what lies outside the cube goes to its edge."""
        x = ((z.float() + 0.5) * self.n).floor().nan_to_num(0.0).clamp(0, self.n - 1)
        return x.to(torch.uint8) << (8 - self.bits)

    def bits_per_dim(self, nats: float) -> float:
        """A log-likelihood of one image in nats → bits per dimension."""
        return (0.0 - nats) / (self.dims * math.log(2))
