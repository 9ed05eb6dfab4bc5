"""Activation normalisation: batch norm has batch statistics in its Jacobian, this has none after its first batch."""

import torch
from torch import Tensor, nn

from .step import Step


class ActNorm(Step):
    """z' = (z + bias) · exp(log_scale), a channel at a time; log|det| = H·W·Σ log_scale.

    Starts with zero mean and unit variance a channel on the first batch (Kingma and Dhariwal, "Glow", 2018, §3.1).

    Args:
        channels: size of dimension 1 of z, images (B, C, H, W) or vectors (B, D).
    """

    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        shape = self._shape(z)
        out = (z + self.bias.view(shape)) * self.log_scale.exp().view(shape)
        return out, z.new_zeros(len(z)) + self.log_scale.sum() * (z[0, 0].numel())

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        shape = self._shape(z)
        return z * (-self.log_scale).exp().view(shape) - self.bias.view(shape)

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        if self.initialised:
            return
        values = z.transpose(0, 1).flatten(1).double()
        self.bias.copy_(-values.mean(1))
        # A channel that never varies keeps a finite scale.
        self.log_scale.copy_(-0.5 * (values.var(1, correction=0) + 1e-6).log())
        self.initialised.fill_(True)

    def extra_repr(self) -> str:
        return f"{len(self.bias)} channels"

    @staticmethod
    def _shape(z: Tensor) -> tuple[int, ...]:
        return (1, -1) + (1,) * (z.dim() - 2)
