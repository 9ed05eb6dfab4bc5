"""Coupling layers: half of the channels are moved by a network that sees only the other half.

The network may be anything, since it is never inverted: here is a Glow's capacity, and nearly all of its time.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .step import Step


class ZeroConv2d(nn.Module):
    """3×3 convolution that starts at zero, with a learned gain exp(3·log_gain) a channel, as in Glow's published code.

    Args:
        channels_in, channels_out: of (B, channels, H, W) → (B, channels_out, H, W).
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.log_gain = nn.Parameter(torch.zeros(channels_out, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.conv(z)
        return out * (3 * self.log_gain).exp()


def coupling_network(channels_in: int, channels_out: int, hidden: int) -> nn.Sequential:
    """3×3 → 1×1 → 3×3 convolutions with `hidden` channels between; the last starts at zero, so the step at identity."""
    return nn.Sequential(
        nn.Conv2d(channels_in, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        ZeroConv2d(hidden, channels_out),
    )


class AffineCoupling(Step):
    """z_b' = (z_b + shift) · σ(raw + 2) with (shift, raw) = network(z_a) (Kingma and Dhariwal, "Glow", 2018, table 1).

    Args:
        channels: C of the latents (B, C, H, W), at least 2.
        hidden: width of the network.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.kept = channels - channels // 2
        self.network = coupling_network(self.kept, 2 * (channels - self.kept), hidden)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        shift, log_scale = self._shift_and_log_scale(z_a)
        out = torch.cat([z_a, (z_b + shift) * log_scale.exp()], 1)
        return out, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        shift, log_scale = self._shift_and_log_scale(z_a)
        return torch.cat([z_a, z_b * (-log_scale).exp() - shift], 1)

    def _shift_and_log_scale(self, z_a: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.network(z_a).chunk(2, 1)
        return shift, F.logsigmoid(raw + 2)


class AdditiveCoupling(Step):
    """z_b' = z_b + network(z_a); log|det| = 0 (Dinh, Krueger and Bengio, "NICE", 2014, §3.2).

    Args:
        channels: C of the latents (B, C, H, W), at least 2.
        hidden: width of the network.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.kept = channels - channels // 2
        self.network = coupling_network(self.kept, channels - self.kept, hidden)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        return torch.cat([z_a, z_b + self.network(z_a)], 1), z.new_zeros(len(z))

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        return torch.cat([z_a, z_b - self.network(z_a)], 1)
