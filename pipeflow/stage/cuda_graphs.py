"""A stage's kernels recorded once and replayed: a GPU that is fed kernel by kernel waits for the host at small latents.

`torch.compile(mode="reduce-overhead")` decides by itself what it records, and `torch.cuda.make_graphed_callables` ends
with the backward pass. Here the forward pass is one CUDA graph, loss and backward pass are another, and clipping,
optimizer and average a third, so that the packet still leaves before the backward pass starts, and a step is three
launches. Where a batch is several packets, those after the first have a backward pass of their own, which adds to the
gradients.

A graph replays addresses. So a packet is copied to where the first one lay, the learning rate is a number on the
device, and what a replay returns lies where it lay before, until the next. All graphs share their memory, since they
are only ever replayed in the order in which they were recorded: a backward pass frees what the forward pass has kept.

Nothing is recorded before a few batches were learned from kernel by kernel, on the stream that is recorded later: by
then libraries have chosen their kernels and moments and averages exist. Recording computes nothing, so it leaves no
trace in weights or moments, and those first batches are batches like any other.
"""

import gc
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..flow import Packet
from .optimizer import allow_recording, can_skip, keep_lr_on_device
from .training_step import TrainingStep

WARM_UP = 3
Result = TypeVar("Result")


class Recorder(Protocol):
    """What records a device's work."""

    def aside(self, work: Callable[[], Result]) -> Result:
        """Does the work where it would be recorded, behind all that the device has been given."""

    def record(self, work: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Records the work without doing it: how to do it, and where its result will be then."""


class CudaRecorder:
    """CUDA graphs that share a memory pool; they must be replayed in the order in which they were recorded.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def aside(self, work: Callable[[], Result]) -> Result:
        """On the stream of the recordings; the stream in use waits for it."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """A graph that `torch.cuda.CUDAGraph.replay` puts on the stream in use.

        Raises:
            ValueError: the work cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        collects = gc.isenabled()
        gc.disable()  # to destroy another graph would break the recording
        try:
            # What other threads do (NCCL asks its events, checkpoints are copied) does not concern the recording.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(
                f"cuda_graphs is on, but a training step cannot be recorded; leave it off ({why})."
            ) from error
        finally:
            if collects:
                gc.enable()
        return graph.replay, result


class RecordedStep:
    """A training step that is computed kernel by kernel `WARM_UP` times, and then recorded and replayed.

    Parameters, moments and averages stay where they are from then on, and must do so.

    Args:
        step: of tensors alone, so its optimizer must be able to skip (`can_skip`).
        optimizer: that the step uses; its learning rate becomes a number on its device.
        recorder: for its device.
        packets: of a batch, all of one size.
    """

    def __init__(
        self, step: TrainingStep, optimizer: torch.optim.Optimizer, recorder: Recorder, packets: int = 1
    ) -> None:
        assert can_skip(optimizer), "the host would have to look at every gradient"
        keep_lr_on_device(optimizer)
        self._step, self._optimizer, self._recorder, self._packets = step, optimizer, recorder, packets
        self._learned = 0
        self._forward: list[tuple[Callable[[], None], tuple[Packet, Tensor]]] = []
        self._backward: list[tuple[Callable[[], None], Tensor]] = []
        self._replay_update: Callable[[], None] | None = None

    def forward(self, packet: Packet, number: int = 0) -> tuple[Packet, Tensor]:
        """As of the step; the nll is valid until it is called again, and the packet too where it is all of a batch."""
        if self._replay_update is None and self._learned >= WARM_UP and torch.is_grad_enabled():
            self._record(packet)
        if self._replay_update is None:
            return self._recorder.aside(lambda: self._step.forward(packet, number))
        self._packet.fill(packet)
        replay, forwarded = self._forward[min(number, 1)]
        replay()
        left, nll = forwarded
        # A part in the same process takes the packets of a batch after the last of them, and labels share their memory.
        return (left.each(torch.clone) if self._packets > 1 else left), nll

    def backward(self, nll: Tensor, number: int = 0) -> Tensor:
        """As of the step, from what `forward` returned last; valid until the next packet but the first."""
        if self._replay_update is None:
            return self._recorder.aside(lambda: self._step.backward(nll, number))
        assert nll is self._forward[min(number, 1)][1][1]
        replay, loss = self._backward[min(number, 1)]
        replay()
        return loss

    def update(self) -> Tensor:
        """As of the step."""
        if self._replay_update is None:
            self._learned += 1
            return self._recorder.aside(self._step.update)
        self._replay_update()
        return self._finite

    def _record(self, like: Packet) -> None:
        """The first packet of a batch starts the gradient, any other adds to it."""
        self._packet = like.each(torch.empty_like)
        allow_recording(self._optimizer)
        for number in range(min(self._packets, 2)):
            self._forward.append(self._recorder.record(partial(self._step.forward, self._packet, number)))
            _, nll = self._forward[number][1]
            self._backward.append(self._recorder.record(partial(self._step.backward, nll, number)))
        self._replay_update, self._finite = self._recorder.record(self._step.update)
