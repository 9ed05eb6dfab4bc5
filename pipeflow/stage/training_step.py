"""What a device computes for a batch: forward and backward pass of each of its packets, then the update.

A device runs behind its host as long as nobody asks it for a number. So what the host decides (whether a part learns,
its learning rate) is decided outside, by the stage; in here are tensors alone, and the same kernels for every batch,
which is also what can be recorded (cuda_graphs.py).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from ..distributed import full_tensor
from ..flow import Packet
from ..model import Truncated, bits_per_dim
from .update import Update


class TrainingStep(Protocol):
    """The computations of a batch; a packet leaves between its forward and its backward pass."""

    def forward(self, packet: Packet, number: int = 0) -> tuple[Packet, Tensor]:
        """What enters the part → what leaves it, and the negative log-likelihoods, (B,) nats.

        Args:
            packet: of the batch.
            number: of the packet in its batch, from 0.
        """

    def backward(self, nll: Tensor, number: int = 0) -> Tensor:
        """Adds the gradient of what `forward` returned to the batch's; that of packet 0 starts it anew.

        Returns:
            The packet's share of the batch's loss, bits/dim, a scalar.
        """

    def update(self) -> Tensor:
        """From the batch's gradient: a scalar, whether it was finite; it is not where a loss was not."""


class EagerStep:
    """Started kernel by kernel.

    Args:
        truncated: the part with its prior.
        update: of the part's parameters.
        dims: dimensions of an image, for bits/dim.
        shares: of a batch's images, of its packets in turn.

    Attributes:
        model: `truncated`, or what it is wrapped in for several processes.
    """

    def __init__(self, truncated: Truncated, update: Update, dims: int, shares: Sequence[float] = (1.0,)) -> None:
        self.model: nn.Module = truncated
        self._update, self._dims, self._shares = update, dims, shares

    def forward(self, packet: Packet, number: int = 0) -> tuple[Packet, Tensor]:
        """The part and its prior; processes that share the model average gradients after the last packet only."""
        model, last = self.model, number == len(self._shares) - 1
        alone = model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) and not last else None
        with alone or nullcontext():
            packet, nll = model(packet)
        return packet, nll

    def backward(self, nll: Tensor, number: int = 0) -> Tensor:
        """The backward pass; a loss that is not finite enters it as NaN, which averaging spreads to all processes."""
        loss = bits_per_dim(nll, self._dims).mean()
        if len(self._shares) > 1:
            loss = self._shares[number] * loss
        if number == 0:
            self._update.optimizer.zero_grad()
        with torch.no_grad():
            factor = 1 + 0 * loss  # NaN where the loss is not finite
        torch.autograd.backward(loss, factor)
        return loss

    def update(self) -> Tensor:
        """One optimizer step, unless it is skipped; with several processes on one model the skip is unanimous."""
        norm = full_tensor(nn.utils.get_total_norm(self._update.gradients()))
        finite = norm.isfinite()
        self._update(norm, finite)
        return finite
