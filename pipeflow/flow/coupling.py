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


class _Coupling(Step):
    """z_a stays, z_b is moved by what a network makes of z_a.

    Args:
        channels: C of the latents (B, C, H, W), at least 2.
        hidden: width of the network.

    Attributes:
        autocast: what the network computes in, where it is not float32; the latents stay what they are.
        channels_last: whether the network's activations lie in memory as (B, H, W, C).
    """

    numbers_a_channel: int
    autocast: torch.dtype | None = None
    channels_last: bool = False

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.kept = channels - channels // 2
        self.network = coupling_network(self.kept, self.numbers_a_channel * (channels - self.kept), hidden)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        z_b, dlogp = self._move(z_b, self._given(z_a))
        return torch.cat([z_a, z_b], 1), dlogp

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        return torch.cat([z_a, self._move_back(z_b, self._given(z_a))], 1)

    def _given(self, z_a: Tensor) -> Tensor:
        if self.channels_last:
            z_a = z_a.contiguous(memory_format=torch.channels_last)
        if self.autocast is None:
            given: Tensor = self.network(z_a)
        else:
            # No cache: each weight is used once, and a CUDA graph must not keep a cast that was made outside it.
            with torch.autocast(z_a.device.type, self.autocast, cache_enabled=False):
                given = self.network(z_a)
            given = given.to(z_a.dtype)
        return given.contiguous() if self.channels_last else given

    def _move(self, z_b: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _move_back(self, z_b: Tensor, given: Tensor) -> Tensor:
        raise NotImplementedError


class AffineCoupling(_Coupling):
    """z_b' = (z_b + shift) · σ(raw + 2) with (shift, raw) = network(z_a) (Kingma and Dhariwal, "Glow", 2018, table 1).

    Args:
        channels: C of the latents (B, C, H, W), at least 2.
        hidden: width of the network.
    """

    numbers_a_channel = 2

    def _move(self, z_b: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = given.chunk(2, 1)
        log_scale = F.logsigmoid(raw + 2)
        return (z_b + shift) * log_scale.exp(), log_scale.flatten(1).sum(1)

    def _move_back(self, z_b: Tensor, given: Tensor) -> Tensor:
        shift, raw = given.chunk(2, 1)
        return z_b * (-F.logsigmoid(raw + 2)).exp() - shift


class AdditiveCoupling(_Coupling):
    """z_b' = z_b + network(z_a); log|det| = 0 (Dinh, Krueger and Bengio, "NICE", 2014, §3.2).

    Args:
        channels: C of the latents (B, C, H, W), at least 2.
        hidden: width of the network.
    """

    numbers_a_channel = 1

    def _move(self, z_b: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        return z_b + given, z_b.new_zeros(len(z_b))

    def _move_back(self, z_b: Tensor, given: Tensor) -> Tensor:
        return z_b - given
