"""A stage: a part at work. Every phase of every run is this `tick`, again and again.

`torch.distributed.pipelining` has schedules of forward and backward actions, since its stages wait for gradients. Here
nothing comes back, so a stage has one action, and the packet leaves before the loss is even computed.
"""

import time
from dataclasses import dataclass

import torch

from ..model import NAMES, Drift, Truncated, bits_per_dim
from ..stream import Inbox, Outbox
from .async_scalars import Late
from .ema import Average
from .optimizer import NamedParameters, set_lr
from .update import Eager, Work


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


@dataclass(frozen=True)
class Report:
    """What one tick did.

    On a GPU the first three are read late: to ask for them is to wait until the batch is done.

    Attributes:
        bits_per_dim: mean over the batch of the flow truncated behind this part.
        updated: whether the weights changed; False where the part only ran forward or the update was skipped.
        bad: whether the loss or the gradient was not finite.
        learn: whether the part was to learn.
        wait_s, send_s, compute_s: seconds waiting for the packet, handing it on (back-pressure), and the rest; on a GPU
            the last is the time to hand the work to it.
        in_flight: packets sent and not yet taken.
        figures: the loss, whether everything was finite, and the drift where activations are inverted.
    """

    learn: bool
    wait_s: float
    send_s: float
    compute_s: float
    in_flight: int
    figures: Late

    @property
    def bits_per_dim(self) -> float:
        return self.figures.read()[0]

    @property
    def bad(self) -> bool:
        return not self.figures.read()[1]

    @property
    def updated(self) -> bool:
        return self.learn and not self.bad

    @property
    def drift(self) -> dict[str, float]:
        """How far the inverted input lay from what entered, absolute and relative; empty where nothing was inverted."""
        return dict(zip(NAMES, self.figures.read()[2:], strict=False))

    def as_dict(self) -> dict[str, object]:
        """As a line of the part's metrics."""
        names = ("bits_per_dim", "learn", "updated", "bad", "wait_s", "send_s", "compute_s", "in_flight")
        return {name: getattr(self, name) for name in names} | self.drift


class Stage(Learner):
    """A part, its optimizer, and where its packets come from and go to.

    Args:
        truncated: the part with its prior.
        optimizer: of the part's parameters.
        lr: learning rate after warm-up.
        warmup_steps: updates over which the learning rate rises linearly.
        clip: largest norm of the part's gradient; None for no clipping.
        dims: dimensions of an image, for bits/dim.
        average: of the part's weights; none by default.
        drift: what the part's passage tells of inverted inputs, to be reported; none by default.

    Attributes:
        work: what the device does.
    """

    def __init__(
        self,
        truncated: Truncated,
        optimizer: torch.optim.Optimizer,
        lr: float,
        warmup_steps: int,
        clip: float | None,
        dims: int,
        average: Average | None = None,
        drift: Drift | None = None,
    ) -> None:
        super().__init__(truncated.named_global_parameters(), optimizer, lr, warmup_steps, average)
        self.truncated, self.dims, self.drift = truncated, dims, drift
        self.work: Work = Eager(truncated, optimizer, clip, dims, self.average)

    def tick(self, learn: bool = True) -> Report:
        """One batch: receive, forward, send at once, and where the part learns: loss, backward, update.

        A loss or gradient that is not finite skips the update.
        """
        start = time.perf_counter()
        given = self.inbox.recv()
        received = time.perf_counter()
        with torch.set_grad_enabled(learn):
            packet, nll = self.work.forward(given)
            forwarded = time.perf_counter()
            self.outbox.send(packet.sealed())
            sent = time.perf_counter()
        if learn:
            self.begin_update()
            loss, finite = self.work.update(nll)
        else:
            with torch.no_grad():  # a forward pass that is replayed was recorded for learning
                loss = bits_per_dim(nll, self.dims).mean()
            finite = loss.isfinite()
        figures = Late(loss, finite, *(self.drift.numbers if learn and self.drift else ()))
        waited, sending = received - start, sent - forwarded
        return Report(
            learn=learn,
            wait_s=waited,
            send_s=sending,
            compute_s=time.perf_counter() - start - waited - sending,
            in_flight=self.outbox.in_flight(),
            figures=figures,
        )
