"""What is said of a lost process, and when: errors of the transports, waiting that never ends, a device of its own."""

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore

from pipeflow import cli
from pipeflow.distributed import (
    EVERYONE,
    ParallelConfig,
    Pulse,
    ResumePoint,
    Watch,
    World,
    others_answer,
    process_world,
    suspicion,
    watchdog,
)
from pipeflow.distributed.heartbeat import SignOfLife
from pipeflow.distributed.process_world import ProcessWorld
from pipeflow.distributed.suspicion import Suspicion
from pipeflow.errors import LostError, NoReturnError
from pipeflow.stage import Report
from pipeflow.stream.process_links import Border
from pipeflow.training.monitor import Monitor

LOST = [
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"),
    dist.DistBackendError("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=RECV)"),
    dist.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network error"
    ),
    RuntimeError("NCCL Async Error: remote process exited or there was a network error"),
    RuntimeError("ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"),
]
DEVICE = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB, of which NCCL holds some"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered; NCCL"),
]


def starts(error):
    """Lets a transfer of a link fail like this."""
    border = Border("part 2", None, 0, (1,), (1,), 1, 2, 1.0, torch.device("cpu"), False, Pulse())

    def transfer(*_, **__):
        raise error

    border.start(transfer, border.buffer(), 1)


def averages(error):
    """Lets a collective fail like this."""
    with others_answer(Pulse(), "gradients were not averaged"):
        raise error


@pytest.mark.parametrize("fails", [starts, averages])
@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:30])
def test_errors_of_both_generations_of_nccl_are_a_lost_process(error, fails):
    with pytest.raises(LostError) as caught:
        fails(error)
    assert caught.value.__cause__ is error and caught.value.timed_out is ("timeout" in str(error))


@pytest.mark.parametrize("fails", [starts, averages])
@pytest.mark.parametrize("error", DEVICE, ids=lambda error: type(error).__name__)
def test_the_device_of_a_process_is_not_a_lost_neighbour(error, fails):
    with pytest.raises(type(error)) as caught:
        fails(error)
    assert caught.value is error


def test_any_other_error_inside_a_collective_passes():
    with pytest.raises(RuntimeError, match="shapes"):
        averages(RuntimeError("shapes do not fit"))


# --- all wait, and nobody does anything ------------------------------------------------------------------------------


class Clock:
    """Three processes of which this is the first, and a clock that the test moves on."""

    def __init__(self, monkeypatch):
        self.now, self.heartbeats = 0.0, 0
        monkeypatch.setattr(suspicion.time, "monotonic", lambda: self.now)
        config = ParallelConfig(timeout_s=10, heartbeat_s=1)
        self.world = World(config, 3, "cpu", size=3)
        self.suspicion = Suspicion(self.world)

    def until(self, seconds, *signs, patience=0):
        """What is suspected, if anything, while these signs (step, beats, waits for) come with every heartbeat."""
        while self.now < seconds:
            self.now += 1
            self.heartbeats += 1
            for rank, (step, beats, waits_for) in enumerate(signs):
                beats = beats(self.now) if callable(beats) else beats
                self.world.store.set(f"alive/{rank}", SignOfLife(self.heartbeats, step, beats, waits_for))
            if fault := self.suspicion.look(patience):
                return fault
        return ""


WAITS = (7, 3, EVERYONE)


def test_a_collective_that_nobody_leaves_is_noticed(monkeypatch):
    clock = Clock(monkeypatch)
    assert clock.until(13, WAITS, (6, 3, EVERYONE), WAITS) == ""
    assert clock.until(14, WAITS, (6, 3, EVERYONE), WAITS) == (
        "part 2 (rank 1), step 6, or another process of the same step: all wait for each other, nothing was done for "
        "13 s (parallel.timeout_s)"
    )


@pytest.mark.parametrize(
    "other",
    [(7, int, EVERYONE), (0, 3, None), (7, 3, 0)],
    ids=["it goes on", "it still loads its data", "it waits for one, which a link bounds"],
)
def test_nobody_is_suspected_where_one_process_is_not_stuck(monkeypatch, other):
    assert Clock(monkeypatch).until(60, WAITS, other, WAITS) == ""


def test_where_a_lost_process_may_come_back_it_is_waited_for_and_not_for_ever(monkeypatch):
    clock = Clock(monkeypatch)
    clock.until(2, WAITS, (6, 3, None), WAITS)
    silent = SignOfLife(1, 6, 3, None)
    monkeypatch.setattr(suspicion, "last_sign", lambda store, rank: silent if rank == 1 else None)
    assert clock.until(35, patience=30) == ""
    assert "part 2 (rank 1), last heard of at step 6: no sign of life" in clock.until(60, patience=30)


def test_a_process_that_has_ended_well_leaves_no_suspicion(monkeypatch):
    clock = Clock(monkeypatch)
    assert clock.until(60) == ""


@pytest.mark.parametrize(("averaged", "lag", "expected"), [(True, 2, EVERYONE), (False, 2, None), (True, 0, None)])
def test_reading_what_a_collective_of_a_gpu_left_is_waiting_for_everyone(averaged, lag, expected):
    """Over NCCL the host waits for the others where it reads the figures of a batch."""
    world, seen = World(ParallelConfig(), 1, "cpu"), []

    def read():
        seen.append(world.pulse.waits_for)
        return [1.0, 1.0]

    config = SimpleNamespace(max_bad_steps=3, data=SimpleNamespace(batch=4))
    state = SimpleNamespace(run=SimpleNamespace(world=world, config=config), progress=SimpleNamespace(step=0))
    mode = SimpleNamespace(names=["end_to_end"], keeps_record=False, waits_for_others=averaged, stages={0: None})
    monitor = Monitor(state, mode, 1, 0, 10)
    monitor.lag = lag
    report = Report(learn=True, wait_s=0, send_s=0, compute_s=0, in_flight=0, figures=SimpleNamespace(read=read))
    for step in range(lag + 1):
        monitor.take(0, step + 1, 0, report)
    monitor.read()
    assert seen[0] == expected and world.pulse.waits_for is None


def unconnected():
    """The first of two processes, before they meet."""
    world = ProcessWorld.__new__(ProcessWorld)
    World.__init__(world, ParallelConfig(), 2, "cpu", size=2)
    world._base = HashStore()
    return world


def test_processes_that_could_not_connect_do_not_meet_again(monkeypatch):
    def refuses(*_):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connect timeout")

    monkeypatch.setattr(process_world, "meet", lambda *_: "the second meeting")
    monkeypatch.setattr(process_world, "open_control_group", refuses)
    with pytest.raises(NoReturnError, match="the processes could not connect: Connect timeout"):
        unconnected().rejoin(ResumePoint(1, 0))


def test_after_all_have_met_again_nobody_waits_for_the_lost_process_any_more(monkeypatch):
    """Else the watchdogs would excuse whatever hangs later."""
    world = unconnected()
    monkeypatch.setattr(world, "_meet", lambda *_: None)
    with pytest.raises(LostError), world.pulse.waiting(1):
        raise LostError("its process is gone")
    world.rejoin(ResumePoint(1, 0))
    assert world.pulse.waits_for is None


def test_a_store_that_falls_silent_at_the_very_end_ends_the_process(monkeypatch):
    world, codes, ended = World(ParallelConfig(heartbeat_s=0.1), 2, "cpu", size=2), [], threading.Event()

    def exits(code):  # what waits would be gone
        codes.append(code)
        ended.set()

    monkeypatch.setattr(watchdog.os, "_exit", exits)
    with Watch(world):
        monkeypatch.setattr(world.store, "set", lambda *_: ended.wait(20))
    assert codes and codes[0] == 1


# --- the end of a process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "size", "by_force"), [("cuda", 2, True), ("cuda", 1, False), ("cpu", 2, False)])
def test_after_an_error_a_process_with_a_gpu_waits_for_no_kernel(device, size, by_force, monkeypatch, capsys):
    world, ends = World(ParallelConfig(), 2, "cpu", size=size), []
    world.device = torch.device(device)

    def work():
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(cli.os, "_exit", ends.append)
    assert cli.run_training(lambda: (world, work), lambda: None) == 1
    assert ends == [1] * by_force
    assert "the loss is not finite" in capsys.readouterr().err
