"""Between what a device computes with and what the transport sends from and receives into.

NCCL takes the device's own memory. gloo takes the host's, and from there a GPU copies on its own only if the memory is
pinned. `Tensor.to` and a synchronised stream would do, but both wait for everything that the GPU was ever given, such
as the backward pass of the batch before; here copies have a stream of their own, and events say what has to wait.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..flow import Packet


class Direct:
    """The transport takes the device's memory.

    Args:
        buffers: a ring that is received into. Empty on a sending end.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._buffers = buffers

    def send(self, packet: Packet, slot: Packet) -> None:
        """Copies a packet to where it is sent from."""
        slot.fill(packet)

    def free(self, number: int) -> None:
        """Buffer `number` may be received into again."""

    def recv(self, number: int) -> Tensor:
        """What buffer `number` has received."""
        return self._buffers[number]


class Staged:
    """Through pinned buffers, of which those that are received into have a counterpart on the GPU.

    Args:
        device: a GPU.
        buffers: pinned; a ring that is received into. Empty on a sending end.
    """

    def __init__(self, device: torch.device, buffers: Sequence[Tensor]) -> None:
        self._device, self._buffers = device, buffers
        self._places = [torch.empty_like(buffer, device=device) for buffer in buffers]
        self._copied: list[torch.cuda.Event | None] = [None] * len(buffers)
        self._used: list[torch.cuda.Event | None] = [None] * len(buffers)
        self._received = 0
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(self._computing())  # which may still use what the places were before

    def send(self, packet: Packet, slot: Packet) -> None:
        """Copies a packet to pinned memory, and returns when it is there.

        The copies wait for what computes the packet, the host for the copies alone: what the device is given meanwhile
        by others delays nothing.
        """
        self._stream.wait_stream(self._computing())
        with torch.cuda.stream(self._stream):
            slot.fill(packet, non_blocking=True)
        self._event(self._stream).synchronize()

    def free(self, number: int) -> None:
        """Waits until buffer `number` has been copied to the GPU, so that it may be received into again."""
        if event := self._copied[number]:
            event.synchronize()

    def recv(self, number: int) -> Tensor:
        """Copies what buffer `number`, the next of the ring, has received to the GPU; the host does not wait.

        The copy goes ahead of what the GPU still has to do, but for the last use of its place: all that was given to
        the stream in use before the next call counts as use.
        """
        if self._received:
            self._used[number - 1] = self._event(self._computing())
        self._received += 1
        if event := self._used[number]:
            self._stream.wait_event(event)
        with torch.cuda.stream(self._stream):
            self._places[number].copy_(self._buffers[number], non_blocking=True)
        self._copied[number] = copied = self._event(self._stream)
        self._computing().wait_event(copied)
        return self._places[number]

    def _computing(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)

    @staticmethod
    def _event(stream: torch.cuda.Stream) -> torch.cuda.Event:
        """Behind all that a stream was given."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event
