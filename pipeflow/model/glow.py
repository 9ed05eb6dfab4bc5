"""A Glow as a flat list of steps.

Published Glows nest levels in levels, so that a cut inside a level has no place to be. Here the model is one list whose
shapes are known beforehand, [squeeze, K flow steps, split, squeeze, …], and any border is an index into it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from ..flow import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    BatchedStep,
    Event,
    LUConv1x1,
    PlainConv1x1,
    Split,
    Squeeze,
    Step,
    Weights,
    at_every_pixel,
    for_each,
    inverses,
    mix,
    on_gpu,
    stacked,
)
from ..settings import AtLeast1, settings
from .seeding import seeded


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


class FlowStep(BatchedStep):
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

    def group(self) -> Hashable | None:
        # What derives from this class may compute something else; FSDP does so, and gathers weights step by step.
        if type(self) is not FlowStep or not self._as_built():
            return None
        coupling = self.coupling
        return type(self.conv1x1), type(coupling), coupling.network.hidden, coupling.autocast, coupling.channels_last

    @classmethod
    def prepare(cls, steps: Sequence[BatchedStep], event: Event, batch: int) -> list[Weights]:
        """ActNorm and convolution as one affine map z ↦ M·z + b, M = W·diag(exp(log_scale)), b = M·bias.

        Weights of a step: M, b, log|det| of an image, and then those of `Coupling.prepare`.
        """
        own = cast(Sequence[FlowStep], steps)
        actnorms = [step.actnorm for step in own]
        bias, log_scale = stacked(actnorms, "bias"), stacked(actnorms, "log_scale")
        matrix, log_det = own[0].conv1x1.matrices([step.conv1x1 for step in own], log_scale)
        # Multiplied out: a matrix times a vector may be rounded otherwise where it is one of many.
        bias = (matrix * bias[:, None]).sum(2)
        log_det = log_det * (event[1] * event[2])
        matrices, biases = (
            (for_each(matrix, batch), for_each(bias, batch)) if on_gpu(matrix) else (matrix.unbind(), bias.unbind())
        )
        couplings = own[0].coupling.prepare([step.coupling for step in own], batch)
        made = zip(matrices, biases, for_each(log_det, batch), couplings, strict=True)
        return [(matrix, bias, log_det, *coupling) for matrix, bias, log_det, coupling in made]

    @classmethod
    def prepare_inverse(cls, weights: Sequence[Weights]) -> list[Weights]:
        forward = torch.stack([matrix[0] if matrix.dim() == 3 else matrix for matrix, *_ in weights])
        bias = torch.stack([bias[0] if bias.dim() == 2 else bias for _, bias, *_ in weights]).double()
        inverse = inverses(forward)
        back = -(inverse * bias[:, None]).sum(2)
        pairs = zip(inverse.to(forward.dtype), back.to(forward.dtype), weights, strict=True)
        return [(matrix, bias, *coupling) for matrix, bias, (_, _, _, *coupling) in pairs]

    def forward(self, z: Tensor, weights: Weights | None = None) -> tuple[Tensor, Tensor]:
        if weights is None and not self._as_built():
            z, log_det_actnorm = self.actnorm(z)
            z, log_det_conv = self.conv1x1(z)
            z, log_det_coupling = self.coupling(z)
            return z, log_det_actnorm + log_det_conv + log_det_coupling
        matrix, bias, log_det, *others = weights or self._alone(z)
        coupling = self.coupling
        kind = coupling.autocast or matrix.dtype
        z, seen = mix(z.to(matrix.dtype), matrix, bias, coupling.kept, kind, coupling.layout(tuple(others)))
        return coupling.move(z, seen, log_det, tuple(others))

    def inverse(self, z: Tensor, eps: Tensor | None = None, weights: Weights | None = None) -> Tensor:
        if weights is None and not self._as_built():
            return self.actnorm.inverse(self.conv1x1.inverse(self.coupling.inverse(z)))
        matrix, bias, *others = weights or self.prepare_inverse([self._alone(z)])[0]
        return at_every_pixel(matrix, self.coupling.move_back(z, tuple(others)), bias)

    def initialise(self, z: Tensor) -> None:
        self.actnorm.initialise(z)

    def _as_built(self) -> bool:
        """Whether a script has replaced none of the three by a step of its own."""
        return (
            type(self.actnorm) is ActNorm
            and type(self.conv1x1) in (LUConv1x1, PlainConv1x1)
            and type(self.coupling) in (AffineCoupling, AdditiveCoupling)
        )

    def _alone(self, z: Tensor) -> Weights:
        return self.prepare([self], tuple(z.shape[1:]), len(z))[0]


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
    with seeded(seed):
        steps: list[Step] = []
        for level in range(config.levels):
            steps.append(Squeeze())
            channels *= 4
            steps += [FlowStep(channels, config) for _ in range(config.steps)]
            if level < config.levels - 1:
                steps.append(Split(channels, config.split_prior == "learned"))
                channels -= channels // 2
    return steps
