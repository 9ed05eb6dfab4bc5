"""What learns from packets, and what is done with a gradient once it is there: skip, clip, warm up, update, average.

By parts and end to end, in one process and in many, gradients come about in different ways; behind that all are alike.
"""

import torch
from torch import Tensor, nn

from .average import Average
from .link import Inbox, Outbox
from .optimizer import NamedParameters, can_skip, skip_if


class Learner:
    """Some parameters and their optimizer.

    Whether an update is skipped is decided by the host, which then waits for the gradient, or where the optimizer can
    skip (`can_skip`) by the device, and the host goes on.

    Args:
        named: (global name, parameter) of all that learn.
        optimizer: of these parameters.
        lr: learning rate after warm-up.
        warmup_steps: updates over which the learning rate rises linearly.
        clip: largest norm of the gradient; None for no clipping.
        average: of the weights; none by default.

    Attributes:
        attempts: updates so far, skipped ones included.
    """

    inbox: Inbox
    outbox: Outbox

    def __init__(
        self,
        named: NamedParameters,
        optimizer: torch.optim.Optimizer,
        lr: float,
        warmup_steps: int,
        clip: float | None,
        average: Average | None = None,
    ) -> None:
        self.named, self.optimizer = named, optimizer
        self.lr, self.warmup_steps, self.clip = lr, warmup_steps, clip
        self.average = average or Average(named, None, {})
        self.attempts = 0
        self.late = can_skip(optimizer)

    def connect(self, inbox: Inbox, outbox: Outbox) -> None:
        """Sets where the next packets come from and go to."""
        self.inbox, self.outbox = inbox, outbox

    def disconnect(self) -> None:
        """Lets go of both, if they were set."""
        for link in ("inbox", "outbox"):
            self.__dict__.pop(link, None)

    def gradients(self) -> list[Tensor]:
        """Of all parameters that have one."""
        return [parameter.grad for _, parameter in self.named if parameter.grad is not None]

    def learn(self, norm: Tensor, finite: Tensor) -> Tensor:
        """One optimizer step, from the gradients that are there.

        Args:
            norm: of the gradient, a scalar, as clipping understands it.
            finite: a scalar, whether the loss and the gradient were finite; else the update is skipped.

        Returns:
            `finite`.
        """
        self.attempts += 1
        if not self.late and not finite:
            return finite
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_([parameter for _, parameter in self.named], self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, self.attempts / max(1, self.warmup_steps))
        if self.late:
            skip_if(self.optimizer, ~finite)
        self.optimizer.step()
        self.average.update(finite if self.late else None)
        return finite
