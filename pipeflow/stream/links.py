"""How packets cross a border, as a stage sees it; the links within a process, and those made of several."""

from collections import deque
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple, Protocol

import torch

from ..flow import Packet


class Inbox(Protocol):
    """Where a stage takes its packets from."""

    def recv(self) -> Packet:
        """The next packet, first in, first out; blocks until it is there."""

    def close(self, early: bool = False) -> None:
        """Lets nothing be on its way any more; `early` if fewer packets came than the link was opened for."""


class Outbox(Protocol):
    """Where a stage puts its packets."""

    def send(self, packet: Packet) -> None:
        """Hands a sealed packet over; blocks while the link is full."""

    def close(self, early: bool = False) -> None:
        """Blocks until everything sent has been taken; `early` if that is less than the link was opened for."""

    def in_flight(self) -> int:
        """Packets sent and not yet taken."""


class Discard:
    """The end of the chain."""

    def send(self, packet: Packet) -> None:
        """Forgets the packet."""

    def close(self, early: bool = False) -> None:
        """Nothing to wait for."""

    def in_flight(self) -> int:
        return 0


class LocalLink:
    """A border within a process: both its inbox and its outbox. Its two stages take turns, so it holds one batch.

    Args:
        wire: dtype to which latents are rounded, as a border between processes would.
        packets: of a batch.
    """

    def __init__(self, wire: torch.dtype = torch.float32, packets: int = 1) -> None:
        self._queue: deque[Packet] = deque()
        self._wire, self._packets = wire, packets

    def send(self, packet: Packet) -> None:
        assert not packet.z.requires_grad, "only sealed packets cross a border"
        assert len(self._queue) < self._packets, "the stage after the border has not taken the batch before this one"
        z = packet.z if self._wire is torch.float32 else packet.z.to(self._wire).to(packet.z.dtype)
        self._queue.append(packet._replace(z=z))

    def recv(self) -> Packet:
        return self._queue.popleft()

    def close(self, early: bool = False) -> None:
        """Checks that nothing was left behind."""
        assert not self._queue, "a packet was sent that nobody took"

    def in_flight(self) -> int:
        return len(self._queue)


class JoinedInbox(NamedTuple):
    """Of a stage whose packets come in pieces: `inboxes`, in the order of the images."""

    inboxes: Sequence[Inbox]

    def recv(self) -> Packet:
        return Packet.joined([inbox.recv() for inbox in self.inboxes])

    def close(self, early: bool = False) -> None:
        for inbox in self.inboxes:
            inbox.close(early)


class DividedOutbox:
    """Of a stage whose packets leave in pieces.

    Args:
        outboxes: where the pieces go.
        pieces: for each outbox, which images of a packet it takes, of one packet after another, again and again.
    """

    def __init__(self, outboxes: Sequence[Outbox], pieces: Sequence[Sequence[range]]) -> None:
        self._outboxes = outboxes
        self._pieces = cycle(zip(*pieces, strict=True))

    def send(self, packet: Packet) -> None:
        """Hands every piece over; blocks while one of the links is full."""
        for outbox, images in zip(self._outboxes, next(self._pieces), strict=True):
            outbox.send(packet.take(images))

    def close(self, early: bool = False) -> None:
        for outbox in self._outboxes:
            outbox.close(early)

    def in_flight(self) -> int:
        """Packets of which a piece has not been taken."""
        return max(outbox.in_flight() for outbox in self._outboxes)
