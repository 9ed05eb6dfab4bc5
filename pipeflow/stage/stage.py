"""A stage: a part at work. Every phase that trains by parts is this `tick`, again and again.

`torch.distributed.pipelining` has schedules of forward and backward actions, since its stages wait for gradients. Here
nothing comes back, so a stage has one action, and the packet leaves before the loss is even computed.
"""

import time
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..model import Drift, Truncated, bits_per_dim, set_packets
from ..stream import Inbox, Outbox
from .async_scalars import AsyncScalars
from .report import Report
from .training_step import EagerStep, TrainingStep
from .update import Update


class BaseStage(ABC):
    """What learns from one batch after another.

    Attributes:
        update: of the parameters that learn here.
        inbox, outbox: where packets come from and go to, once connected.
    """

    inbox: Inbox
    outbox: Outbox

    def __init__(self, update: Update) -> None:
        self.update = update

    def connect(self, inbox: Inbox, outbox: Outbox) -> None:
        """Sets where the next packets come from and go to."""
        self.inbox, self.outbox = inbox, outbox

    @abstractmethod
    def tick(self, learn: bool = True) -> Report:
        """Takes one batch: always forward, and if it is to learn, also backward and through an update."""


class Stage(BaseStage):
    """A part with its update, between two links.

    Args:
        truncated: the part with its prior: the flow as if it ended here.
        update: of the part's parameters.
        dims: dimensions of an image, for bits/dim.
        drift: receives how far inverted inputs lie from what entered; None where activations are not inverted.
        sizes: images per packet, for the packets of a batch in turn; a batch is one packet by default.

    Attributes:
        step: what the device computes for a batch.
    """

    def __init__(
        self,
        truncated: Truncated,
        update: Update,
        dims: int,
        drift: Drift | None = None,
        sizes: tuple[int, ...] = (1,),
    ) -> None:
        super().__init__(update)
        self.truncated, self.dims, self.drift = truncated, dims, drift
        set_packets(truncated, len(sizes))
        self._shares = [size / sum(sizes) for size in sizes]
        self.step: TrainingStep = EagerStep(truncated, update, dims, self._shares)

    def tick(self, learn: bool = True) -> Report:
        """One batch. Per packet: receive, forward, send at once, and where the part learns, backward. Then one update.

        A loss or gradient that is not finite skips the update.
        """
        started, loss = time.perf_counter(), None
        wait_s = send_s = 0.0
        for number, share in enumerate(self._shares):
            asked = time.perf_counter()
            packet = self.inbox.recv()
            received = time.perf_counter()
            with torch.set_grad_enabled(learn):
                packet, nll = self.step.forward(packet, number)
                forwarded = time.perf_counter()
                self.outbox.send(packet.sealed())
                sent = time.perf_counter()
            of_packet = self.step.backward(nll, number) if learn else self._score(nll, share)
            loss = of_packet if loss is None else loss + of_packet
            wait_s, send_s = wait_s + received - asked, send_s + sent - forwarded
        assert loss is not None, "a batch has at least one packet"
        if learn:
            self.update.begin()
        finite = self.step.update() if learn else loss.isfinite()
        drift = self.drift.numbers if learn and self.drift else ()
        return Report(
            learn=learn,
            figures=AsyncScalars(loss, finite, *drift),
            wait_s=wait_s,
            send_s=send_s,
            in_flight=self.outbox.in_flight(),
            compute_s=time.perf_counter() - started - wait_s - send_s,
        )

    @torch.no_grad()  # a forward pass that is replayed was recorded for learning
    def _score(self, nll: Tensor, share: float) -> Tensor:
        """A packet's share of the loss, bits/dim."""
        return share * bits_per_dim(nll, self.dims).mean()
