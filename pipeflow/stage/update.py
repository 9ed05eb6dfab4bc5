"""What a device does with a batch: the forward pass, then loss, backward pass and update.

A device runs behind its host as long as nobody asks it for a number. So what the host decides (whether a part learns,
its learning rate) is decided outside, by the stage; in here are tensors alone, and the same kernels for every batch,
which is also what can be recorded (cuda_graphs.py).
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from ..distributed import whole
from ..flow import Packet
from ..model import Truncated, bits_per_dim
from .ema import Average
from .optimizer import NamedParameters, can_skip, skip_if


class Work(Protocol):
    """The two halves of a batch; between them the packet leaves."""

    def forward(self, given: Packet) -> tuple[Packet, Tensor]:
        """What enters the part → what leaves it, and the negative log-likelihoods, (B,) nats."""

    def update(self, nll: Tensor) -> tuple[Tensor, Tensor]:
        """From what `forward` returned: the loss, bits/dim, and whether it and the gradient were finite; scalars."""


class Update:
    """What is done with a gradient once it is there: clip, skip, step, average.

    An update whose loss or gradient is not finite is skipped: by the device, where the optimizer can (`can_skip`); else
    by the host, which then waits for the gradient.

    Args:
        named: (global name, parameter) of all that learn.
        optimizer: of these parameters.
        clip: largest norm of the gradient; None for no clipping.
        average: of the weights.
    """

    def __init__(
        self, named: NamedParameters, optimizer: torch.optim.Optimizer, clip: float | None, average: Average
    ) -> None:
        self._parameters = [parameter for _, parameter in named]
        self._optimizer, self._clip, self._average = optimizer, clip, average

    def gradients(self) -> list[Tensor]:
        """Of all parameters that have one."""
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def __call__(self, norm: Tensor, finite: Tensor) -> None:
        """One optimizer step from the gradients that are there, or none.

        Args:
            norm: of the gradient, a scalar, as clipping understands it.
            finite: a scalar, whether the loss and the gradient were finite.
        """
        late = can_skip(self._optimizer)
        if not late and not finite:
            return
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip, norm)
        if late:
            skip_if(self._optimizer, ~finite)
        self._optimizer.step()
        self._average.update(finite if late else None)


class Eager:
    """Kernel by kernel.

    Args:
        truncated: the part with its prior.
        optimizer: of the part's parameters.
        clip: largest norm of the part's gradient; None for no clipping.
        dims: dimensions of an image, for bits/dim.
        average: of the part's weights.

    Attributes:
        model: `truncated`, or what it is wrapped in for several processes.
    """

    def __init__(
        self, truncated: Truncated, optimizer: torch.optim.Optimizer, clip: float | None, dims: int, average: Average
    ) -> None:
        self.model: nn.Module = truncated
        self._optimizer, self._dims = optimizer, dims
        self._update = Update(truncated.named_global_parameters(), optimizer, clip, average)

    def forward(self, given: Packet) -> tuple[Packet, Tensor]:
        """The part and its prior."""
        packet, nll = self.model(given)
        return packet, nll

    def update(self, nll: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, backward pass and one optimizer step, unless it is skipped.

        With several processes on one model the skip is unanimous: a bad loss enters the backward pass as NaN, and
        averaging spreads it.
        """
        loss = bits_per_dim(nll, self._dims).mean()
        self._optimizer.zero_grad()
        torch.autograd.backward(loss, torch.where(loss.isfinite(), 1.0, torch.nan).to(loss.dtype))
        norm = nn.utils.get_total_norm(self._update.gradients())
        finite = whole(norm).isfinite()
        self._update(norm, finite)
        return loss, finite
