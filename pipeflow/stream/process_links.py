"""How packets cross a border between two processes.

`dist.send` blocks until the peer takes the message and `dist.recv` until it comes, so a stage built on them computes
and communicates in turns. A `ProcessOutbox` keeps up to `depth` sends in flight and a `ProcessInbox` one receive posted
ahead; memory stays bounded, since buffers are made once and the sender waits for its oldest. A link is opened for a
number of packets of one known shape, so it needs no headers, and only the transport's acknowledgements return. Where a
run is asked to stop fewer cross: then a last message, which nobody looks at, answers the receive posted ahead.

What guards a buffer: before the sender writes into one, it waits for the transfer that has used it; of the two that are
received into, one is posted again when the next packet is taken from the other. On the CPU the host does all of this in
order. Over NCCL it does as well: the host asks whether a transfer has completed, until it has or is overdue, and then
`wait` makes the stream in use wait for it too. Through pinned memory the transport is the host's, and copies have a
stream of their own, with events before and behind them (pinned_staging.py).

Two rules come from NCCL. Between opening a link and its first send, no process may wait for another in any other way,
nor synchronise the device: the receive posted ahead may be a kernel that runs until its packet comes, and the first
transfer between two processes may hold the host until the other one begins it as well (torch's older backend connects
then; the newer one does when the group is opened). And no transfer has a time-out of the transport's own but one so
long that it never passes first (process_groups.py): NCCL counts it from when the transfer was posted, though nobody may
wait for it yet, and ends the process.

A link may carry latents in fewer bits than they are computed in. A `LocalLink` rounds them just as well, so that what
is learned does not depend on which borders lie between processes; the log-likelihood is never rounded.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import Pulse, bytes_per_image, lost_error
from ..flow import Event, Packet
from .pinned_staging import Direct, Staged

_POLL_S = 2e-4


class Border(NamedTuple):
    """One end of a border between two processes, and what crosses it.

    Attributes:
        name: as errors call this end, such as "part 2 (rank 1), from part 1 (rank 0)".
        group: of the two processes.
        peer: global rank of the other end.
        event: shape of a latent.
        sizes: images per packet, of one packet after another, again and again.
        packets: how many cross before the link closes.
        depth: sends in flight.
        timeout_s: how long a packet that is due may take, from when it is waited for.
        device: where packets are made and used.
        staged: packets travel through pinned host memory.
        pulse: of this process, which says for whom it waits.
        wire: dtype of latents on their way.
        labels: whether packets have labels.
    """

    name: str
    group: Any
    peer: int
    event: Event
    sizes: tuple[int, ...]
    packets: int
    depth: int
    timeout_s: float
    device: torch.device
    staged: bool
    pulse: Pulse
    wire: torch.dtype = torch.float32
    labels: bool = False

    def buffer(self) -> Tensor:
        """One contiguous buffer of bytes for labels, logp and z of the largest packet."""
        size = max(self.sizes) * bytes_per_image(self.event, self.wire, self.labels)
        if self.staged:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def used(self, buffer: Tensor, number: int) -> Tensor:
        """What the packet of this number, from 0, takes of a buffer."""
        return buffer[: self.sizes[number % len(self.sizes)] * bytes_per_image(self.event, self.wire, self.labels)]

    def packet(self, buffer: Tensor, number: int) -> Packet:
        """The buffer seen as the packet of this number: z (B, *event) in the dtype of the wire, logp (B,) float32."""
        batch = self.sizes[number % len(self.sizes)]
        label, used = self.used(buffer, number).tensor_split([8 * batch * self.labels])  # int64 first, for alignment
        logp, z = used[: 4 * batch], used[4 * batch :]
        packet = Packet(z.view(self.wire).view(batch, *self.event), logp.view(torch.float32))
        return packet._replace(label=label.view(torch.int64)) if self.labels else packet

    def staging(self, ring: Sequence[Tensor] = ()) -> Direct | Staged:
        """What lies between the device and the transport; `ring`: the buffers that are received into."""
        return Staged(self.device, ring) if self.staged else Direct(ring)

    def wait(self, work: Any, number: int) -> None:
        """Waits for a transfer, or raises LostError with the border's name and the packet's number."""
        with self.pulse.waiting(self.peer):
            if dist.get_backend(self.group) == "gloo":  # which looks whether a transfer has completed in `wait` only
                self._attempt(lambda: work.wait(timedelta(seconds=self.timeout_s)), number)
            else:
                self._attempt(lambda: self._poll(work), number)

    def _poll(self, work: Any) -> None:
        """Waits on the host until a transfer has completed, then lets the stream in use wait for it."""
        until = time.monotonic() + self.timeout_s
        while not work.is_completed():
            if time.monotonic() > until:
                raise RuntimeError(f"timed out after {self.timeout_s:g} s")
            time.sleep(_POLL_S)
        work.wait()  # raises what the transport has found

    def start(self, transfer: Callable[..., Any], buffer: Tensor, number: int) -> Any:
        """Starts `dist.isend` or `dist.irecv` of a buffer."""
        with self.pulse.waiting(self.peer):  # the first one may have to connect
            return self._attempt(lambda: transfer(buffer, self.peer, group=self.group), number)

    def _attempt(self, action: Callable[[], Any], number: int) -> Any:
        try:
            return action()
        except RuntimeError as error:
            sentence = f"{self.name}: packet {number} of {self.packets} did not pass"
            raise lost_error(sentence, error, self.peer) from error


class ProcessOutbox:
    """The sending end of a border between two processes."""

    def __init__(self, border: Border) -> None:
        self._border = border
        self._buffers = [border.buffer() for _ in range(min(border.depth, border.packets))]
        self._staging = border.staging()
        self._works: deque[Any] = deque()
        self._sent = 0

    def send(self, packet: Packet) -> None:
        """Copies the packet into a free buffer and starts its transfer; waits for the oldest if none is free."""
        assert self._sent < self._border.packets, "more packets than the link was opened for"
        if len(self._works) == len(self._buffers):
            self._border.wait(self._works.popleft(), self._sent - len(self._buffers) + 1)
        buffer = self._buffers[self._sent % len(self._buffers)]
        slot = self._border.packet(buffer, self._sent)
        assert packet.z.shape == slot.z.shape and packet.z.dtype == torch.float32, (packet.z.shape, slot.z.shape)
        self._staging.send(packet, slot)
        used = self._border.used(buffer, self._sent)
        self._sent += 1
        self._works.append(self._border.start(dist.isend, used, self._sent))

    def close(self, early: bool = False) -> None:
        """Waits until every packet has been taken."""
        assert early or self._sent == self._border.packets, f"{self._sent} of {self._border.packets} packets were sent"
        if self._sent < self._border.packets:
            last = self._border.used(self._border.buffer(), self._sent)
            self._works.append(self._border.start(dist.isend, last, self._sent + 1))
        while self._works:
            self._border.wait(self._works.popleft(), self._sent - len(self._works))

    def abort(self) -> None:
        """Gives up what is on its way, and the connection: the other end is lost. The link cannot be used again."""
        self._works.clear()
        self._border = self._border._replace(group=None)

    def in_flight(self) -> int:
        return sum(not work.is_completed() for work in self._works)


class ProcessInbox:
    """The receiving end. A packet is valid until the next `recv`, which hands its buffer to the transport again."""

    def __init__(self, border: Border) -> None:
        self._border = border
        self._buffers = [border.buffer() for _ in range(min(2, border.packets))]
        self._staging = border.staging(self._buffers)
        self._received = 0
        self._posted = self._post() if border.packets else None

    def close(self, early: bool = False) -> None:
        """Waits for the receive that was posted ahead, if there is one."""
        assert early or self._received == self._border.packets, (
            f"{self._received} of {self._border.packets} packets were taken"
        )
        if self._received < self._border.packets:
            self._border.wait(self._posted, self._received + 1)

    def abort(self) -> None:
        """Gives up what is on its way, and the connection: the other end is lost. The link cannot be used again."""
        self._posted = None
        self._border = self._border._replace(group=None)

    def recv(self) -> Packet:
        """The next packet; the receive after it is posted before this one is used, never past the last."""
        border, number = self._border, self._received
        assert number < border.packets, "more packets than the link was opened for"
        border.wait(self._posted, number + 1)
        self._received += 1
        if self._received < border.packets:
            self._posted = self._post()
        packet = border.packet(self._staging.recv(number % 2), number)
        return packet._replace(z=packet.z.float())

    def _post(self) -> Any:
        number = self._received
        self._staging.free(number % 2)
        return self._border.start(dist.irecv, self._border.used(self._buffers[number % 2], number), number + 1)
