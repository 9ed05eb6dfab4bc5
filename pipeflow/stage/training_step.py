"""What a device computes for a batch: the forward pass, then loss, backward pass and update.

A device runs behind its host as long as nobody asks it for a number. So what the host decides (whether a part learns,
its learning rate) is decided outside, by the stage; in here are tensors alone, and the same kernels for every batch,
which is also what can be recorded (cuda_graphs.py).
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from ..distributed import full_tensor
from ..flow import Packet
from ..model import Truncated, bits_per_dim
from .update import Update


class TrainingStep(Protocol):
    """The two halves of a batch; between them the packet leaves."""

    def forward(self, packet: Packet) -> tuple[Packet, Tensor]:
        """What enters the part → what leaves it, and the negative log-likelihoods, (B,) nats."""

    def update(self, nll: Tensor) -> tuple[Tensor, Tensor]:
        """From what `forward` returned: the loss, bits/dim, and whether it and the gradient were finite; scalars."""


class EagerStep:
    """Started kernel by kernel.

    Args:
        truncated: the part with its prior.
        update: of the part's parameters.
        dims: dimensions of an image, for bits/dim.

    Attributes:
        model: `truncated`, or what it is wrapped in for several processes.
    """

    def __init__(self, truncated: Truncated, update: Update, dims: int) -> None:
        self.model: nn.Module = truncated
        self._update, self._dims = update, dims

    def forward(self, packet: Packet) -> tuple[Packet, Tensor]:
        """The part and its prior."""
        packet, nll = self.model(packet)
        return packet, nll

    def update(self, nll: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, backward pass and one optimizer step, unless it is skipped.

        With several processes on one model the skip is unanimous: a bad loss enters the backward pass as NaN, and
        averaging spreads it.
        """
        loss = bits_per_dim(nll, self._dims).mean()
        self._update.optimizer.zero_grad()
        with torch.no_grad():
            factor = 1 + 0 * loss  # 1, or NaN where the loss is not finite
        torch.autograd.backward(loss, factor)
        norm = nn.utils.get_total_norm(self._update.gradients())
        finite = full_tensor(norm).isfinite()
        self._update(norm, finite)
        return loss, finite
