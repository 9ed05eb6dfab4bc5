"""An outbox that remembers: what crossed a border since the run last paused can cross it again.

Where the process behind a border is lost, what it had received is lost with it, and the parts before the border cannot
compute it again, since they have learned meanwhile. What they sent is all that it depended on (in a Kahn network;
"upstream backup" in stream processing), so sending that once more gives the same bits.
"""

from ..errors import LostError
from ..flow import Packet
from .links import Discard, Outbox


class Backlog:
    """The sending end of a border whose other end may be lost and come back; keeps every packet in host memory."""

    def __init__(self) -> None:
        self._packets: list[Packet] = []
        self._outbox: Outbox = Discard()
        self._taken = 0
        self._lost: LostError | None = None

    def leave(self) -> None:
        """Lets go of the link."""
        self._outbox, self._lost = Discard(), None

    def open(self, outbox: Outbox, taken: int) -> "Backlog":
        """Goes on over another link.

        Args:
            outbox: the link; opened for what is still to come.
            taken: how many packets the other end has done; those behind it are sent again, or are yet to be made.

        Raises:
            LostError: the other end is lost again.
        """
        self._outbox, self._taken, self._lost = outbox, taken, None
        for packet in self._packets[taken:]:
            outbox.send(packet)
        return self

    def send(self, packet: Packet) -> None:
        """Keeps the packet, and sends it unless the other end has it. A loss is told by `check`, behind the batch."""
        self._packets.append(Packet(packet.z.to("cpu", copy=True), packet.logp.to("cpu", copy=True)))
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
        """Blocks until everything sent has been taken."""
        self._outbox.close(early)

    def in_flight(self) -> int:
        """Packets sent and not yet taken."""
        return self._outbox.in_flight()
