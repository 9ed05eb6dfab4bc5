"""Pinned buffers between a GPU and gloo: whatever runs late, every packet is what was sent.

Without a GPU its streams are queues that do their work in an order that is drawn at random, as late as events allow.
"""

import random
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeflow.flow import Packet
from pipeflow.stream.pinned_staging import Staged

CPU = torch.device("cpu")
PACKETS = 12


class Gpu(TorchDispatchMode):
    """Streams as queues; a copy in a stream's block is queued, and what is behind an event waits for it."""

    def __init__(self, seed):
        super().__init__()
        self.random, self.queues, self.now = random.Random(seed), [], None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and self.now is not None:
            self.now.do(lambda: func(*args, **(kwargs or {})))
            return args[0]
        return func(*args, **(kwargs or {}))

    def step(self):
        """Lets one stream that may go on do so; False where none may."""
        ready = [queue for queue in self.queues if queue.work and queue.work[0][0]()]
        if ready:
            self.random.choice(ready).work.pop(0)[1]()
        return bool(ready)

    def run(self, until=lambda: False):
        while not until() and self.step():
            pass

    def dawdle(self):
        """The device does some of its work while the host goes on."""
        for _ in range(self.random.randrange(6)):
            self.step()


GPU = Gpu(0)


class Stream:
    """One of its queues."""

    def __init__(self, device=None):
        self.work = []
        GPU.queues.append(self)

    def do(self, action, ready=lambda: True):
        self.work.append((ready, action))

    def wait_event(self, event):
        self.do(lambda: None, lambda: event.done)

    def wait_stream(self, other):
        event = Event()
        event.record(other)
        self.wait_event(event)


class Event:
    """Done when its turn has come."""

    done = False

    def record(self, stream):
        stream.do(lambda: setattr(self, "done", True))

    def synchronize(self):
        GPU.run(lambda: self.done)


@contextmanager
def stream(chosen):
    GPU.now = chosen
    yield
    GPU.now = None


@pytest.fixture
def compute(monkeypatch):
    """Makes a GPU of queues, by seed; returns the stream that computes."""

    def make(seed):
        global GPU
        GPU = Gpu(seed)
        computing = Stream()
        for name, value in (("Stream", Stream), ("Event", Event), ("stream", stream)):
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: computing)
        return computing

    return make


def received(computing):
    """What the device has read of every packet; the transport writes into a buffer as soon as it is posted."""
    buffers = [torch.full((4,), -1.0) for _ in range(2)]
    found = {}
    with GPU:
        staged = Staged(CPU, buffers)
        buffers[0].fill_(0)
        for number in range(PACKETS):
            GPU.dawdle()
            if number + 1 < PACKETS:
                staged.free((number + 1) % 2)
                buffers[(number + 1) % 2].fill_(number + 1)
            place = staged.recv(number % 2)
            for _ in range(2):  # the forward pass reads it, and much later the backward pass
                computing.do(lambda n=number, place=place: found.setdefault(n, []).append(place.tolist()))
        GPU.run()
    return found


def sent(computing):
    """What the host finds in the buffer when `send` returns; the device computes every packet in the same place."""
    z, logp, found = torch.zeros(4), torch.zeros(4), []
    with GPU:
        staged = Staged(CPU, [])
        for number in range(PACKETS):
            slot = Packet(torch.full((4,), -1.0), torch.full((4,), -1.0))
            computing.do(lambda n=number: (z.fill_(n), logp.fill_(-n)))
            GPU.dawdle()
            staged.send(Packet(z, logp), slot)
            found.append((slot.z.tolist(), slot.logp.tolist()))
    return found


RECEIVED = {number: [[float(number)] * 4] * 2 for number in range(PACKETS)}
SENT = [([float(number)] * 4, [-float(number)] * 4) for number in range(PACKETS)]


@pytest.mark.parametrize("seed", range(20))
def test_every_packet_is_what_was_sent(compute, seed):
    assert received(compute(seed)) == RECEIVED
    assert sent(compute(seed)) == SENT


GUARDS = [(Stream, "wait_event"), (Event, "synchronize"), (Stream, "wait_stream")]


@pytest.mark.parametrize(("kind", "guard"), GUARDS, ids=[guard for _, guard in GUARDS])
def test_without_a_guard_some_are_not(compute, monkeypatch, kind, guard):
    monkeypatch.setattr(kind, guard, lambda self, other=None: None)
    outcomes = [(received(compute(seed)), sent(compute(seed))) for seed in range(20)]
    assert any(outcome != (RECEIVED, SENT) for outcome in outcomes)


def test_the_host_waits_for_no_computation_to_receive(compute):
    """The device has not begun with any packet, and the copies are all there."""
    computing = compute(0)
    held = Event()
    with GPU:
        buffers = [torch.zeros(4), torch.ones(4)]
        staged = Staged(CPU, buffers)
        GPU.run()
        computing.wait_event(held)
        for number in range(2):
            staged.recv(number)
            staged.free(number)
        assert [place.tolist() for place in staged._places] == [[0.0] * 4, [1.0] * 4] and computing.work


def test_a_gpu_does_so_too(device):
    """With --device cuda: a GPU that is always behind."""
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    buffers = [torch.zeros(2**16, pin_memory=True) for _ in range(2)]
    staged, slot = Staged(device, buffers), Packet(*(torch.zeros(2**16, pin_memory=True) for _ in range(2)))
    load, found = torch.rand(2048, 2048, device=device), []
    for number in range(PACKETS):
        staged.free(number % 2)
        buffers[number % 2].fill_(number)
        place = staged.recv(number % 2)
        load = (load @ load).clamp(0, 1)
        found.append(place + 0 * load[0, 0])
        staged.send(Packet(2 * place, 3 * place), slot)
        assert (slot.z == 2 * number).all() and (slot.logp == 3 * number).all()
    assert [value.unique().tolist() for value in found] == [[float(number)] for number in range(PACKETS)]
