"""An outbox that remembers: what crossed a border since the segment began can cross it again.

Where the process after a border is lost, what it had received is lost with it, and the parts before the border cannot
compute it again, since they have learned meanwhile. What they sent is all that it depended on (in a Kahn network;
"upstream backup" in stream processing), so sending that once more gives the same bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import LostError
from ..flow import Packet
from .chain import Links
from .links import Discard, Outbox
from .process_links import ProcessInbox, ProcessOutbox


class ReplayOutbox:
    """The sending end of a border whose other end may be lost and come back; keeps every packet in host memory."""

    def __init__(self) -> None:
        self._packets: list[Packet] = []
        self._outbox: Outbox = Discard()
        self._taken = 0
        self._lost: LostError | None = None

    def open(self, outbox: Outbox, made: int, taken: int) -> None:
        """Goes on over another link.

        Args:
            outbox: the link; opened for what is still to come.
            made: how many packets this end goes on after; those of a batch that it has not finished are made again.
            taken: how many packets the other end has done; those after it are sent again, or are yet to be made.

        Raises:
            LostError: the other end is lost again.
        """
        self._outbox, self._taken, self._lost = outbox, taken, None
        del self._packets[made:]
        for packet in self._packets[taken:]:
            outbox.send(packet)

    def send(self, packet: Packet) -> None:
        """Keeps the packet, and sends it unless the other end has it; `check` raises a LostError after the batch."""
        self._packets.append(packet.each(lambda tensor: tensor.to("cpu", copy=True)))
        if len(self._packets) > self._taken and self._lost is None:
            try:
                self._outbox.send(packet)
            except LostError as error:
                self._lost = error

    def check(self) -> None:
        """Raises what `send` met: the part has learned from its batch by now, and may stop here."""
        if self._lost:
            raise self._lost

    def close(self, early: bool = False) -> None:
        self._outbox.close(early)

    def abort(self) -> None:
        """Gives the link up, and keeps the packets."""
        if isinstance(self._outbox, ProcessOutbox):
            self._outbox.abort()
        self._outbox, self._lost = Discard(), None

    def in_flight(self) -> int:
        return self._outbox.in_flight()


def with_replay(links: Links, replays: dict[int, ReplayOutbox], done: Sequence[int], packets: int) -> Links:
    """The links just opened, with a ReplayOutbox before other processes, which sends again what was lost.

    Args:
        links: of this process's parts.
        replays: those of the segment so far, by position; new ones are added.
        done: how many batches of the segment each part has done.
        packets: per batch.

    Raises:
        LostError: another process is lost again.
    """
    remembered: Links = []
    for position, inbox, outbox in links:
        if isinstance(outbox, ProcessOutbox):
            replay = replays.setdefault(position, ReplayOutbox())
            replay.open(outbox, done[position] * packets, done[position + 1] * packets)
            outbox = replay
        remembered.append((position, inbox, outbox))
    return remembered


def abort(links: Links) -> None:
    """Gives up the links to other processes, with what is on its way: a process is lost."""
    for _, inbox, outbox in links:
        for link in (inbox, outbox):
            if isinstance(link, (ProcessInbox, ProcessOutbox, ReplayOutbox)):
                link.abort()


@contextmanager
def aborted_if_lost(links: Links) -> Iterator[None]:
    """While the block runs, a LostError gives the links up."""
    try:
        yield
    except LostError:
        abort(links)
        raise
