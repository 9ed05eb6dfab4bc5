"""Invertible 1×1 convolutions: a learned change of the channels' basis between couplings.

Two classes of one map. `torch.linalg.slogdet` of a C×C matrix is slow on GPUs and its gradient needs an inverse; the LU
form turns the log-determinant into a sum and can never become singular.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .step import Step


def _random_rotation(channels: int) -> Tensor:
    q: Tensor
    r: Tensor
    q, r = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
    return q * r.diagonal().sign()


def by_matmul(weight: Tensor, z: Tensor) -> Tensor:
    """weight (O, C) at every pixel of z (B, C, H, W), by a matrix product, which a GPU never rounds to TF32 here."""
    return torch.matmul(weight, z.flatten(2)).view(len(z), len(weight), *z.shape[2:])


def _at_every_pixel(weight: Tensor, z: Tensor) -> Tensor:
    # cuDNN's convolutions may use TF32 (model/precision.py), and what goes through them comes back inexactly.
    return by_matmul(weight, z) if z.is_cuda else F.conv2d(z, weight[:, :, None, None])


class _Conv1x1(Step):
    """z'[:, :, i, j] = W z[:, :, i, j]; log|det| = H·W·log|det W|."""

    def weight_and_log_det(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        weight, log_det = self.weight_and_log_det()
        out = _at_every_pixel(weight, z)
        return out, z.new_zeros(len(z)) + log_det * (z.shape[2] * z.shape[3])

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        weight, _ = self.weight_and_log_det()
        # Inverted in float64: a rounding error here is repeated at every pixel of every later step. `inv` would ask the
        # device whether that worked, and wait; where it did not, log|det| is not finite either.
        inverse = torch.linalg.inv_ex(weight.double()).inverse.to(z.dtype)
        return _at_every_pixel(inverse, z)


class PlainConv1x1(_Conv1x1):
    """W as it is, started as a random rotation (Kingma and Dhariwal, "Glow", 2018, §3.2).

    Args:
        channels: C of the latents (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(_random_rotation(channels).float())

    def weight_and_log_det(self) -> tuple[Tensor, Tensor]:
        return self.matrix, torch.linalg.slogdet(self.matrix)[1]

    def extra_repr(self) -> str:
        return f"{len(self.matrix)} channels, plain"


class LUConv1x1(_Conv1x1):
    """W = P · L · (U + diag(sign · exp(log_diagonal))), P fixed (Kingma and Dhariwal, "Glow", 2018, equation 10).

    Args:
        channels: C of the latents (B, C, H, W).
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        p, lower, upper = torch.linalg.lu(_random_rotation(channels))
        diagonal = upper.diagonal()
        self.register_buffer("permutation", p.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())

    def weight_and_log_det(self) -> tuple[Tensor, Tensor]:
        one = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        lower = self.lower.tril(-1) + one
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        return self.permutation @ lower @ upper, self.log_diagonal.sum()

    def extra_repr(self) -> str:
        return f"{len(self.sign)} channels, LU"
