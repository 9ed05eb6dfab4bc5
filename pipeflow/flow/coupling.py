"""Coupling layers: half of the channels are moved by a network that sees only the other half.

The network may be anything, since it is never inverted: here is a Glow's capacity, and nearly all of its time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import matrix_network
from .fused import Layout, affine, biased, on_gpu
from .step import Step, Weights
from .step_weights import converted, for_each, stacked


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


class CouplingNetwork(nn.Sequential):
    """3×3 → 1×1 → 3×3 convolutions with `hidden` channels between; the last starts at zero, so the step at identity.

    Args:
        channels_in, channels_out: of (B, channels, H, W) → (B, channels_out, H, W).
        hidden: channels between.

    Attributes:
        in_packets: whether batches come as several packets, whose few images need another algorithm on the CPU.
    """

    in_packets = False

    def __init__(self, channels_in: int, channels_out: int, hidden: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            ZeroConv2d(hidden, channels_out),
        )
        self.hidden = hidden

    def forward(self, z: Tensor, weights: Weights = ()) -> Tensor:
        """What the last convolution gives, without its gain; `weights` are those of `convolutions`, made beforehand.

        As matrices they take z as rows, and the last bias is left out.
        """
        if weights and weights[0].dim() == 2:
            return matrix_network.network(z, *weights)
        first, first_bias, middle, middle_bias, last, last_bias = weights or self._tensors()
        hidden = F.relu(F.conv2d(z, first, first_bias, padding=1))
        # With one thread and fewer than 16 images PyTorch leaves a 1×1 convolution to loops of its own, which take 1.8
        # times as long as oneDNN's; it does not if the convolution is dilated, which changes nothing at 1×1.
        dilation = 2 if self.in_packets and not z.is_cuda and len(z) * z.shape[2] * z.shape[3] >= 192 else 1
        hidden = F.relu(F.conv2d(hidden, middle, middle_bias, dilation=dilation))
        return F.conv2d(hidden, last, last_bias, padding=1)

    @staticmethod
    def gains(networks: Sequence["CouplingNetwork"]) -> Tensor:
        """What the outputs of n networks are multiplied by, (n, channels_out)."""
        return (3 * stacked([network[4] for network in networks], "log_gain").flatten(1)).exp()

    @staticmethod
    def convolutions(networks: Sequence["CouplingNetwork"], dtype: torch.dtype, channels_last: bool) -> list[Weights]:
        """Weights and biases of n networks as they compute with them: each kind converted in one piece.

        In half precision with channels last a GPU takes them as matrices (matrix_network.py), without the last bias.
        """
        kinds, each = [], [network._tensors() for network in networks]
        if channels_last and dtype.itemsize == 2 and on_gpu(each[0][0]):
            return matrix_network.rows_of([tensors[:-1] for tensors in each], dtype)
        for tensors in zip(*each, strict=True):
            together = converted(torch.cat(tensors), dtype, channels_last and tensors[0].dim() == 4)
            kinds.append(torch.split(together, len(tensors[0])))
        return list(zip(*kinds, strict=True))

    def _tensors(self) -> Weights:
        first, _, middle, _, last = self
        return tuple(getattr(conv, kind) for conv in (first, middle, last.conv) for kind in ("weight", "bias"))


class Coupling(Step):
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
        self.network = CouplingNetwork(self.kept, self.numbers_a_channel * (channels - self.kept), hidden)

    @staticmethod
    def prepare(couplings: Sequence["Coupling"], batch: int) -> list[Weights]:
        """What `move` needs of the parameters of n couplings of one size and precision.

        Gains (B, …); weights of the convolutions; as matrices, also the last bias (B, …).
        """
        first, networks = couplings[0], [coupling.network for coupling in couplings]
        gains = for_each(CouplingNetwork.gains(networks), batch)
        if first.autocast is None and not first.channels_last:
            return [(gain,) for gain in gains]
        dtype = first.autocast or gains[0].dtype
        convolutions = CouplingNetwork.convolutions(networks, dtype, first.channels_last)
        made = [(gain, *tensors) for gain, tensors in zip(gains, convolutions, strict=True)]
        if convolutions[0][0].dim() == 4:
            return made
        biases = for_each(torch.stack([network._tensors()[-1] for network in networks]), batch)
        return [(*weights, bias) for weights, bias in zip(made, biases, strict=True)]

    def layout(self, weights: Weights) -> Layout:
        """How the network takes its latents, given weights of `prepare`."""
        if len(weights) > 1 and weights[1].dim() == 2:
            return "rows"
        return "channels_last" if self.channels_last else "contiguous"

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        (weights,) = self.prepare([self], len(z))
        return self.move(z, self._seen(z[:, : self.kept], weights), z.new_zeros(len(z)), weights)

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        return self.move_back(z, self.prepare([self], len(z))[0])

    def move(self, z: Tensor, seen: Tensor, log_det: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """z (B, C, H, W), and its first channels in the network's layout → z', dlogp + log_det (B,)."""
        raise NotImplementedError

    def move_back(self, z: Tensor, weights: Weights) -> Tensor:
        """z' → z."""
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        return torch.cat([z_a, self._move_back(z_b, self._given(self._seen(z_a, weights), weights))], 1)

    def _move_back(self, z_b: Tensor, given: Tensor) -> Tensor:
        raise NotImplementedError

    def _run(self, seen: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
        """What the network gives, and the bias (B, …) that is left to add."""
        if self.layout(weights) == "rows":
            return self.network(seen, weights[1:-1]), weights[-1]
        return self.network(seen, weights[1:]), None

    def _given(self, seen: Tensor, weights: Weights) -> Tensor:
        return biased(*self._run(seen, weights)) * weights[0][:, :, None, None]

    def _seen(self, z_a: Tensor, weights: Weights) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        z_a = z_a.to(self.autocast or z_a.dtype, memory_format=layout)
        return matrix_network.around(z_a) if self.layout(weights) == "rows" else z_a


class AffineCoupling(Coupling):
    """z_b' = (z_b + shift) · σ(raw + 2) with (shift, raw) = network(z_a) (Kingma and Dhariwal, "Glow", 2018, table 1).

    Args:
        channels: C of the latents (B, C, H, W), at least 2.
        hidden: width of the network.
    """

    numbers_a_channel = 2

    def move(self, z: Tensor, seen: Tensor, log_det: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        raw, bias = self._run(seen, weights)
        return affine(z, raw, weights[0], log_det, self.kept, bias)

    def _move_back(self, z_b: Tensor, given: Tensor) -> Tensor:
        shift, raw = given.chunk(2, 1)
        return z_b * (-F.logsigmoid(raw + 2)).exp() - shift


class AdditiveCoupling(Coupling):
    """z_b' = z_b + network(z_a); log|det| = 0 (Dinh, Krueger and Bengio, "NICE", 2014, §3.2).

    Args:
        channels: C of the latents (B, C, H, W), at least 2.
        hidden: width of the network.
    """

    numbers_a_channel = 1

    def move(self, z: Tensor, seen: Tensor, log_det: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        z_a, z_b = torch.split(z, [self.kept, z.shape[1] - self.kept], 1)
        return torch.cat([z_a, z_b + self._given(seen, weights)], 1), log_det

    def _move_back(self, z_b: Tensor, given: Tensor) -> Tensor:
        return z_b - given
