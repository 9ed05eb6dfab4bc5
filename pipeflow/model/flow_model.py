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

LabelsLike = Sequence[int] | Tensor | int | None
"""One of each image, or one for all; −1 where it is not known."""


def check_labels(labels: LabelsLike, count: int, classes: int, device: torch.device) -> Tensor | None:
    """Labels as a flow of so many classes takes them: (count,) int64; None for one that takes none.

    Raises:
        ValueError: they are missing, out of range, not one of each image, or the flow takes none.
    """
    if not classes:
        if labels is not None:
            raise ValueError("Labels are given, but this flow was trained without them; leave them out.")
        return None
    if labels is None:
        raise ValueError(
            f"Labels are missing: this flow takes one of each image, from 0 to {classes - 1}, or -1 where it is not "
            "known."
        )
    given = torch.as_tensor(labels, device=device)
    if given.is_floating_point() or given.shape not in ((), (count,)):
        raise ValueError(
            f"Labels are {given.dtype} of shape {tuple(given.shape)}; they must be whole numbers, one of each of the "
            f"{count} images, or one for all."
        )
    if wrong := given[(given < -1) | (given >= classes)].flatten().tolist():
        raise ValueError(
            f"A label is {wrong[0]}, but this flow knows 0 to {classes - 1}, and -1 where a label is not known."
        )
    return given.long().expand(count)


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

    @property
    def classes(self) -> int:
        """How many labels the flow knows; 0 for one that takes none."""
        return self.pixels.classes

    def log_prob(
        self, images: Tensor, labels: LabelsLike = None, *, seed: int = 0, index: Tensor | None = None
    ) -> Tensor:
        """Log-likelihood of discrete images, bounded from below by one draw of dequantisation noise.

        Args:
            images: uint8, shape (B, C, H, W).
            labels: of the images, (B,) or one for all, for a flow that takes them; −1 where a label is not known.
            seed: of the noise.
            index: (B,) int64, the images' numbers, which choose their noise; 0 … B−1 by default.

        Returns:
            (B,) nats an image; `bits_per_dim` turns it into bits/dim. Differentiable in the parameters.

        Raises:
            ValueError: images of another dtype or shape, or labels that are missing or out of range.
        """
        label = self._label(labels, images)
        index = torch.arange(len(images), device=images.device) if index is None else index
        packet = self.pixels.noisy(images, seed, Purpose.EVALUATE, 0, index)._replace(label=label)
        for part in self.parts():
            packet = part(packet)
        return packet.logp + self.prior.log_prob(packet.z, label)

    def bits_per_dim(self, images: Tensor, labels: LabelsLike = None, *, seed: int = 0) -> Tensor:
        """`log_prob` in bits per dimension, (B,); lower is better, and a uniform guess has log2(levels)."""
        return self.pixels.bits_per_dim(1.0) * self.log_prob(images, labels, seed=seed)

    @torch.no_grad()
    def initialise(self, images: Tensor, labels: LabelsLike = None, *, seed: int = 0) -> None:
        """Data-dependent start of every ActNorm that has not started, from uint8 images (B, C, H, W); use ≥ 256."""
        label, index = self._label(labels, images), torch.arange(len(images), device=images.device)
        packet = self.pixels.noisy(images, seed, Purpose.INITIALISE, 0, index)._replace(label=label)
        for part in self.parts():
            packet = part.initialise(packet)

    def encode(self, images: Tensor, labels: LabelsLike = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """Images → latents that are standard normal under the model.

        Args:
            images: uint8, shape (B, C, H, W).
            labels: as for `log_prob`; `decode` needs the same.
            seed: of the dequantisation noise; None puts each pixel into the middle of its cell.

        Returns:
            name → (B, …): "top" and, for every split, "split.<index of the step>". `decode` is the inverse.
        """
        if seed is None:
            packet = self.pixels.dequantise(images, None)
        else:
            index = torch.arange(len(images), device=images.device)
            packet = self.pixels.noisy(images, seed, Purpose.EVALUATE, 0, index)
        label = self._label(labels, images)
        packet = packet._replace(label=label)
        latents: dict[str, Tensor] = {}
        for part in self.parts():
            packet, eps = part.encode(packet)
            latents |= {f"split.{index}": left for index, left in eps.items()}
        return latents | {"top": self.prior.standardise(packet.z, label)}

    def decode(self, latents: dict[str, Tensor], labels: LabelsLike = None, guidance: float = 0.0) -> Tensor:
        """Latents as `encode` names them → images, uint8, shape (B, C, H, W).

        Args:
            latents: name → (B, …).
            labels: as for `log_prob`.
            guidance: how far to go beyond what the labels make, away from what no label makes.

        Raises:
            ValueError: a latent is missing, unknown or of the wrong shape; labels are missing or out of range; there is
                guidance for a flow that takes no labels.
        """
        if guidance and not self.classes:
            raise ValueError(f"Guidance is {guidance:g}, but this flow was trained without labels; leave it out.")
        expected = self.latent_shapes()
        found = {name: tuple(latent.shape[1:]) for name, latent in latents.items()}
        if found != expected:
            raise ValueError(f"Latents of shapes {found} do not fit this flow, which has {expected}.")
        label = self._label(labels, latents["top"])
        z = self.prior.unstandardise(latents["top"], label, guidance)
        eps = {int(name.removeprefix("split.")): left for name, left in latents.items() if name != "top"}
        for part in reversed(self.parts()):
            z = part.inverse(z, eps, label, guidance)
        return self.pixels.quantise(z)

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float = 1.0, seed: int = 0, labels: LabelsLike = None, guidance: float = 0.0
    ) -> Tensor:
        """Draws images; image i depends on (seed, i) and its label only, however many are drawn.

        Args:
            n: how many.
            temperature: standard deviation of the latents; below 1, likelier and less varied images.
            seed: of the draw.
            labels, guidance: as for `decode`.

        Returns:
            uint8, shape (n, C, H, W).

        Raises:
            ValueError: n below 1, a negative temperature, or labels that are missing or out of range.
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
        return self.decode(latents, labels, guidance)

    def _label(self, labels: LabelsLike, images: Tensor) -> Tensor | None:
        return check_labels(labels, len(images), self.classes, images.device)

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
