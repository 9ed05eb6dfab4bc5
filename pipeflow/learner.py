"""What learns from packets: parameters, their optimizer and its learning rate, and where packets come from and go to.

By parts and end to end, in one process and in many, gradients come about in different ways; these are alike in all.
"""

import torch

from .average import Average
from .link import Inbox, Outbox
from .optimizer import NamedParameters, set_lr


class Learner:
    """Some parameters and their optimizer.

    Args:
        named: (global name, parameter) of all that learn.
        optimizer: of these parameters.
        lr: learning rate after warm-up.
        warmup_steps: updates over which the learning rate rises linearly.
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
        average: Average | None = None,
    ) -> None:
        self.named, self.optimizer = named, optimizer
        self.lr, self.warmup_steps = lr, warmup_steps
        self.average = average or Average(named, None, {})
        self.attempts = 0

    def connect(self, inbox: Inbox, outbox: Outbox) -> None:
        """Sets where the next packets come from and go to."""
        self.inbox, self.outbox = inbox, outbox

    def disconnect(self) -> None:
        """Lets go of both, if they were set."""
        for link in ("inbox", "outbox"):
            self.__dict__.pop(link, None)

    def begin_update(self) -> None:
        """Sets the learning rate of the update that comes now, skipped or not."""
        self.attempts += 1
        set_lr(self.optimizer, self.lr * min(1.0, self.attempts / max(1, self.warmup_steps)))
