"""Split: half of the channels leave the flow at the end of a level, and are scored where they leave."""

import math

import torch
from torch import Tensor

from .coupling import ZeroConv2d
from .step import Event, Step


def normal_log_prob(eps: Tensor, log_sd: Tensor | None = None) -> Tensor:
    """log N of a variable with standardised value eps (B, …) and log standard deviation log_sd: (B,), nats."""
    exponent = 0.5 * eps.square() if log_sd is None else torch.add(log_sd, eps.square(), alpha=0.5)
    return -0.5 * math.log(2 * math.pi) * eps[0].numel() - exponent.flatten(1).sum(1)


class Split(Step):
    """z → z₁ goes on, z₂ leaves; dlogp = log N(z₂; μ(z₁), σ(z₁)), eps = (z₂ − μ)/σ.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", 2017, §3.6; the learned conditional prior is
    that of Kingma and Dhariwal's published code for "Glow", 2018.

    Args:
        channels: C of the latents (B, C, H, W); C − C//2 channels go on.
        learned: μ and σ from a 3×3 convolution of z₁ that starts at zero; otherwise 0 and 1.
    """

    place = "closes"
    entry = "split_prior"

    def __init__(self, channels: int, learned: bool = True) -> None:
        super().__init__()
        self.kept = channels - channels // 2
        self.prior = ZeroConv2d(self.kept, 2 * (channels - self.kept)) if learned else None

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z_1, dlogp, _ = self.encode(z)
        return z_1, dlogp

    def encode(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_1, z_2 = torch.split(z, [self.kept, z.shape[1] - self.kept], 1)
        if self.prior is None:
            return z_1, normal_log_prob(z_2), z_2
        mean, log_sd = self.prior(z_1).chunk(2, 1)
        eps = (z_2 - mean) * (-log_sd).exp()
        return z_1, normal_log_prob(eps, log_sd), eps

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        if eps is None:
            raise ValueError("Split.inverse needs eps: what encode handed out, or a draw of shape eps_shape.")
        if self.prior is None:
            return torch.cat([z, eps], 1)
        mean, log_sd = self.prior(z).chunk(2, 1)
        return torch.cat([z, mean + eps * log_sd.exp()], 1)

    def out_shape(self, event: Event) -> Event:
        return self.kept, *event[1:]

    def eps_shape(self, event: Event) -> Event:
        return event[0] - self.kept, *event[1:]

    def extra_repr(self) -> str:
        return f"{self.kept} channels go on, {'learned' if self.prior else 'standard normal'} prior"
