"""A Glow as a flat list of steps.

Published Glows nest levels in levels, so that a cut inside a level has no place to be. Here the model is one list whose
shapes are known beforehand, [squeeze, K flow steps, split, squeeze, …], and any border is an index into it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..flow import ActNorm, AdditiveCoupling, AffineCoupling, Event, LUConv1x1, PlainConv1x1, Split, Squeeze, Step
from ..settings import AtLeast1, settings


@settings("glow")
@dataclass(frozen=True)
class GlowConfig:
    """The shape of a Glow (Kingma and Dhariwal, "Glow", 2018, figure 2).

    Attributes:
        levels: number of squeezes; half of the channels leave between two levels.
        steps: flow steps per level.
        hidden: width of the coupling networks.
        coupling: whether couplings are "affine" or "additive".
        conv1x1: "lu" or "plain" parametrisation of the 1×1 convolutions.
        split_prior: "learned" from the channels that stay, or "standard" normal.
        top_prior: "learned" per channel, or "standard" normal.
    """

    levels: AtLeast1 = 3
    steps: AtLeast1 = 32
    hidden: AtLeast1 = 512
    coupling: Literal["affine", "additive"] = "affine"
    conv1x1: Literal["lu", "plain"] = "lu"
    split_prior: Literal["learned", "standard"] = "learned"
    top_prior: Literal["learned", "standard"] = "standard"

    def __str__(self) -> str:
        return f"Glow {self.levels} × {self.steps} × {self.hidden}"


class FlowStep(Step):
    """ActNorm, invertible 1×1 convolution, coupling: one of Glow's "steps of flow".

    Args:
        channels: C of the latents (B, C, H, W).
        config: which convolution, which coupling, how wide.
    """

    def __init__(self, channels: int, config: GlowConfig) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels)
        self.conv1x1 = LUConv1x1(channels) if config.conv1x1 == "lu" else PlainConv1x1(channels)
        coupling = AffineCoupling if config.coupling == "affine" else AdditiveCoupling
        self.coupling = coupling(channels, config.hidden)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z, dlogp_actnorm = self.actnorm(z)
        z, dlogp_conv = self.conv1x1(z)
        z, dlogp_coupling = self.coupling(z)
        return z, dlogp_actnorm + dlogp_conv + dlogp_coupling

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        return self.actnorm.inverse(self.conv1x1.inverse(self.coupling.inverse(z)))

    def initialise(self, z: Tensor) -> None:
        self.actnorm.initialise(z)


def glow_steps(config: GlowConfig, image: Event, seed: int = 0) -> list[Step]:
    """The steps of a Glow, in order.

    Args:
        config: the model's shape.
        image: (C, H, W) of the images.
        seed: of the initial weights; the global generator is left as it was.

    Raises:
        ValueError: the image cannot be squeezed `levels` times, or is none.
    """
    if len(image) != 3:
        raise ValueError(
            f"A Glow is a flow on images (C, H, W), and this data has the shape {image}; hand over a flow of your own."
        )
    channels, height, width = image
    unit = 2**config.levels
    if height % unit or width % unit:
        nearest = max(unit, round(height / unit) * unit), max(unit, round(width / unit) * unit)
        raise ValueError(
            f"Images of {height}×{width} cannot be halved {config.levels} times (glow.levels): both sides must be "
            f"multiples of {unit}. The nearest size is {nearest[0]}×{nearest[1]}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        steps: list[Step] = []
        for level in range(config.levels):
            steps.append(Squeeze())
            channels *= 4
            steps += [FlowStep(channels, config) for _ in range(config.steps)]
            if level < config.levels - 1:
                steps.append(Split(channels, config.split_prior == "learned"))
                channels -= channels // 2
    return steps
