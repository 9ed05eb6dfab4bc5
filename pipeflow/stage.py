"""A stage: a part at work. Every phase of every run is this `tick`, again and again.

`torch.distributed.pipelining` has schedules of forward and backward actions, since its stages wait for gradients. Here
nothing comes back, so a stage has one action, and the packet leaves before the loss is even computed.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from .average import Average
from .link import Inbox, Outbox
from .objective import Truncated, bits_per_dim
from .optimizer import NamedParameters


@dataclass(frozen=True)
class Report:
    """What one tick did.

    Attributes:
        bits_per_dim: mean over the batch of the flow truncated behind this part.
        updated: whether the weights changed; False where the part only ran forward or the update was skipped.
        bad: whether the loss or the gradient was not finite.
        wait_s, send_s, compute_s: seconds waiting for the packet, handing it on (back-pressure), and the rest.
        in_flight: packets sent and not yet taken.
    """

    bits_per_dim: float
    updated: bool
    bad: bool
    wait_s: float
    send_s: float
    compute_s: float
    in_flight: int


class Stage:
    """A part, its optimizer, and where its packets come from and go to.

    Args:
        truncated: the part with its prior.
        optimizer: of the part's parameters.
        lr: learning rate after warm-up.
        warmup_steps: updates over which the learning rate rises linearly.
        clip: largest norm of the part's gradient; None for no clipping.
        dims: dimensions of an image, for bits/dim.
        average: of the part's weights; none by default.
        model: `truncated` as wrapped for several processes; itself by default.
    """

    inbox: Inbox
    outbox: Outbox

    def __init__(
        self,
        truncated: Truncated,
        optimizer: torch.optim.Optimizer,
        lr: float,
        warmup_steps: int,
        clip: float | None,
        dims: int,
        average: Average | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.truncated, self.optimizer = truncated, optimizer
        self.lr, self.warmup_steps, self.clip, self.dims = lr, warmup_steps, clip, dims
        self.model = truncated if model is None else model
        self.named: NamedParameters = truncated.named_global_parameters()
        self.average = average or Average(self.named, None, {})
        self.attempts = 0

    def connect(self, inbox: Inbox, outbox: Outbox) -> None:
        """Sets where the next packets come from and go to."""
        self.inbox, self.outbox = inbox, outbox

    def tick(self, learn: bool = True) -> Report:
        """One batch: receive, forward, send at once, and where the part learns: loss, backward, update.

        A loss or gradient that is not finite skips the update. With several processes on one model the skip is
        unanimous: a bad loss enters the backward pass as NaN, and averaging spreads it.
        """
        start = time.perf_counter()
        given = self.inbox.recv()
        received = time.perf_counter()
        with torch.set_grad_enabled(learn):
            packet, nll = self.model(given)
            forwarded = time.perf_counter()
            self.outbox.send(packet.sealed())
            sent = time.perf_counter()
            loss = bits_per_dim(nll, self.dims).mean()
        bad = not self._update(loss) if learn else not math.isfinite(loss.item())
        waited, sending = received - start, sent - forwarded
        return Report(
            bits_per_dim=loss.item(),
            updated=learn and not bad,
            bad=bad,
            wait_s=waited,
            send_s=sending,
            compute_s=time.perf_counter() - start - waited - sending,
            in_flight=self.outbox.in_flight(),
        )

    def _update(self, loss: torch.Tensor) -> bool:
        """Backward and one optimizer step; False if it was skipped."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss, torch.where(loss.isfinite(), 1.0, torch.nan).to(loss.dtype))
        gradients = [parameter.grad for _, parameter in self.named if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.attempts += 1
        if not norm.isfinite():
            return False
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_([parameter for _, parameter in self.named], self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, self.attempts / max(1, self.warmup_steps))
        self.optimizer.step()
        self.average.update()
        return True
