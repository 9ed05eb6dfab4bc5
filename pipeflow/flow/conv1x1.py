"""Invertible 1×1 convolutions: a learned change of the channels' basis between couplings.

Two classes of one map. `torch.linalg.slogdet` of a C×C matrix is slow on GPUs and its gradient needs an inverse; the LU
form turns the log-determinant into a sum and can never become singular.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .step import Step
from .step_weights import stacked


def _random_rotation(channels: int) -> Tensor:
    q: Tensor
    r: Tensor
    q, r = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
    return q * r.diagonal().sign()


def at_every_pixel(weight: Tensor, z: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight (O, C) at every pixel of z (B, C, H, W), plus bias (O,)."""
    # cuDNN's convolutions may use TF32 (model/precision.py), and what goes through them comes back inexactly.
    return by_matmul(weight, z, bias) if z.is_cuda else F.conv2d(z, weight[:, :, None, None], bias)


def by_matmul(weight: Tensor, z: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by a matrix product, which a GPU never rounds to TF32 here."""
    # Expanded by hand: `matmul` would copy what goes in and what comes out wherever the weight asks for a gradient.
    weights, flat = weight.expand(len(z), -1, -1), z.flatten(2)
    out = torch.bmm(weights, flat) if bias is None else torch.baddbmm(bias[:, None], weights, flat)
    return out.view(len(z), len(weight), *z.shape[2:])


def inverses(matrices: Tensor) -> Tensor:
    """Inverses of (n, C, C), float64."""
    # Inverted in float64: a rounding error here is repeated at every pixel of every later step. `inv` would ask the
    # device whether that worked, and wait; where it did not, log|det| is not finite either.
    inverse: Tensor = torch.linalg.inv_ex(matrices.double()).inverse
    return inverse


class Conv1x1(Step):
    """z'[:, :, i, j] = W z[:, :, i, j]; log|det| = H·W·log|det W|."""

    @classmethod
    def matrices(cls, convs: Sequence["Conv1x1"], log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """M = W·diag(exp(log_scale)) and log|det M| of n convolutions of this class and of equal size.

        Args:
            convs: n of them.
            log_scale: (n, C).

        Returns:
            (n, C, C) and (n,).
        """
        raise NotImplementedError

    def weight_and_log_det(self) -> tuple[Tensor, Tensor]:
        """W (C, C) and log|det W|, a scalar."""
        weight = next(self.parameters())
        matrices, log_dets = self.matrices([self], weight.new_zeros(1, weight.shape[0]))
        return matrices[0], log_dets[0]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        weight, log_det = self.weight_and_log_det()
        out = at_every_pixel(weight, z)
        return out, z.new_zeros(len(z)) + log_det * (z.shape[2] * z.shape[3])

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        weight, _ = self.weight_and_log_det()
        return at_every_pixel(inverses(weight[None])[0].to(z.dtype), z)


class PlainConv1x1(Conv1x1):
    """W as it is, started as a random rotation (Kingma and Dhariwal, "Glow", 2018, §3.2).

    Args:
        channels: C of the latents (B, C, H, W).
        start: (C, C) float64, another W to start from.
    """

    def __init__(self, channels: int, start: Tensor | None = None) -> None:
        super().__init__()
        self.matrix = nn.Parameter((_random_rotation(channels) if start is None else start).float())

    @classmethod
    def matrices(cls, convs: Sequence[Conv1x1], log_scale: Tensor) -> tuple[Tensor, Tensor]:
        weights = stacked(convs, "matrix")
        return weights * log_scale.exp()[:, None], torch.linalg.slogdet(weights)[1] + log_scale.sum(1)

    def extra_repr(self) -> str:
        return f"{len(self.matrix)} channels, plain"


class LUConv1x1(Conv1x1):
    """W = P · L · (U + diag(sign · exp(log_diagonal))), P fixed (Kingma and Dhariwal, "Glow", 2018, equation 10).

    Args:
        channels: C of the latents (B, C, H, W).
        start: (C, C) float64, a W to start from; a random rotation by default.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, start: Tensor | None = None) -> None:
        super().__init__()
        p, lower, upper = torch.linalg.lu(_random_rotation(channels) if start is None else start)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", p.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())

    @classmethod
    def matrices(cls, convs: Sequence[Conv1x1], log_scale: Tensor) -> tuple[Tensor, Tensor]:
        permutation, log_diagonal = stacked(convs, "permutation"), stacked(convs, "log_diagonal") + log_scale
        lower = torch.baddbmm(permutation, permutation, stacked(convs, "lower").tril(-1))
        upper = stacked(convs, "upper").triu(1) * log_scale.exp()[:, None]
        diagonal = stacked(convs, "sign") * log_diagonal.exp()
        return torch.baddbmm(lower * diagonal[:, None], lower, upper), log_diagonal.sum(1)

    def extra_repr(self) -> str:
        return f"{len(self.sign)} channels, LU"
