"""A trained (or fresh) flow as one plain module: uint8 images in, nats out, samples back. No process group anywhere.

The trainer deals in parts, packets and latents; people want `log_prob(images)` and `sample(n)`. This module wraps a
truncated flow, the whole one or one that stops at a border, with the pixels it was made for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data import Pixels, Purpose, Space, normal
from ..flow import StandardNormal
from .glow import GlowConfig, glow_steps
from .part import Part
from .truncated import truncate


class Flow(nn.Module):
    """A normalizing flow on images.

    Args:
        parts: the parts of the flow in order; one that holds every step, or the slices up to a border.
        prior: of what leaves the last part.
        pixels: what the images look like.
    """

    def __init__(self, parts: Sequence[Part], prior: StandardNormal, pixels: Space) -> None:
        super().__init__()
        self._parts = nn.ModuleList(parts)
        self.prior = prior
        self.pixels = pixels

    def parts(self) -> list[Part]:
        """The parts, in order."""
        return list(self._parts)  # type: ignore[arg-type]

    def log_prob(self, images: Tensor, seed: int = 0, index: Tensor | None = None) -> Tensor:
        """Log-likelihood of discrete images, bounded from below by one draw of dequantisation noise.

        Args:
            images: uint8, shape (B, C, H, W).
            seed: of the noise.
            index: (B,) int64, the images' numbers, which choose their noise; 0 … B−1 by default.

        Returns:
            (B,) nats an image; `bits_per_dim` turns it into bits/dim. Differentiable in the parameters.

        Raises:
            ValueError: images of another dtype or shape.
        """
        index = torch.arange(len(images), device=images.device) if index is None else index
        packet = self.pixels.noisy(images, seed, Purpose.EVALUATE, 0, index)
        for part in self.parts():
            packet = part(packet)
        return packet.logp + self.prior.log_prob(packet.z)

    def bits_per_dim(self, images: Tensor, seed: int = 0) -> Tensor:
        """`log_prob` in bits per dimension, (B,); lower is better, and a uniform guess has log2(levels)."""
        return self.pixels.bits_per_dim(1.0) * self.log_prob(images, seed)

    @torch.no_grad()
    def initialise(self, images: Tensor, seed: int = 0) -> None:
        """Data-dependent start of every ActNorm that has not started, from uint8 images (B, C, H, W); use ≥ 256."""
        index = torch.arange(len(images), device=images.device)
        packet = self.pixels.noisy(images, seed, Purpose.INITIALISE, 0, index)
        for part in self.parts():
            packet = part.initialise(packet)

    def encode(self, images: Tensor, seed: int | None = None) -> dict[str, Tensor]:
        """Images → latents that are standard normal under the model.

        Args:
            images: uint8, shape (B, C, H, W).
            seed: of the dequantisation noise; None puts each pixel into the middle of its cell.

        Returns:
            name → (B, …): "top" and, for every split, "split.<index of the step>". `decode` is the inverse.
        """
        if seed is None:
            packet = self.pixels.dequantise(images, None)
        else:
            index = torch.arange(len(images), device=images.device)
            packet = self.pixels.noisy(images, seed, Purpose.EVALUATE, 0, index)
        latents: dict[str, Tensor] = {}
        for part in self.parts():
            packet, eps = part.encode(packet)
            latents |= {f"split.{index}": left for index, left in eps.items()}
        return latents | {"top": self.prior.standardise(packet.z)}

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """Latents as `encode` names them → images, uint8, shape (B, C, H, W).

        Raises:
            ValueError: a latent is missing, unknown or of the wrong shape.
        """
        expected = self.latent_shapes()
        found = {name: tuple(latent.shape[1:]) for name, latent in latents.items()}
        if found != expected:
            raise ValueError(f"Latents of shapes {found} do not fit this flow, which has {expected}.")
        z = self.prior.unstandardise(latents["top"])
        eps = {int(name.removeprefix("split.")): left for name, left in latents.items() if name != "top"}
        for part in reversed(self.parts()):
            z = part.inverse(z, eps)
        return self.pixels.quantise(z)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """Draws images; image i depends on (seed, i) only, however many are drawn.

        Args:
            n: how many.
            temperature: standard deviation of the latents; below 1, likelier and less varied images.
            seed: of the draw.

        Returns:
            uint8, shape (n, C, H, W).

        Raises:
            ValueError: n below 1, or a negative temperature.
        """
        if n < 1 or temperature < 0:
            raise ValueError(f"Cannot draw {n} images at temperature {temperature}: n ≥ 1 and temperature ≥ 0.")
        weight = next(self.parameters())
        index = torch.arange(n, device=weight.device)
        latents: dict[str, Tensor] = {}
        for name, shape in self.latent_shapes().items():
            place = 0 if name == "top" else int(name.removeprefix("split.")) + 1
            draw = normal(seed, Purpose.SAMPLE, place, index, torch.Size(shape).numel())
            latents[name] = draw.to(weight.dtype).view(n, *shape) * temperature
        return self.decode(latents)

    def latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the latents without their batch, by the names that `encode` uses."""
        shapes = {f"split.{i}": s for part in self.parts() for i, s in part.eps_shapes().items()}
        return shapes | {"top": self.prior.event}


class Glow(Flow):
    """A Glow on images (Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1×1 Convolutions", 2018).

    Call `initialise` on a batch of real images before training.

    Args:
        config: levels, flow steps a level, width and variants.
        image: (C, H, W) of the images.
        bits: bits a pixel that are kept, 1–8.
        levels: values of a stored pixel, 256 unless the data set says otherwise.
        seed: of the initial weights.

    Raises:
        ValueError: an image size that is no multiple of 2**levels, or bits out of range.
    """

    def __init__(
        self,
        config: GlowConfig = GlowConfig(),  # noqa: B008 - frozen
        image: tuple[int, int, int] = (3, 32, 32),
        bits: int = 8,
        levels: int = 256,
        seed: int = 0,
    ) -> None:
        _, whole = truncate(glow_steps(config, image, seed), (), image, config.top_prior, "standard")
        super().__init__([whole.part], whole.prior, Pixels(image, levels, bits))
