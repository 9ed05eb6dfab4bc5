"""Laws 5, 8 and 9, on real sockets: nothing travels backward, memory stays bounded, streams overlap."""

import math
import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeflow.config import Config, PhaseConfig
from pipeflow.data import Pixels
from pipeflow.data.datasets import load
from pipeflow.distributed import ParallelConfig, Stop, World, open_world
from pipeflow.distributed.socket_counters import sockets
from pipeflow.flow import Packet, StandardNormal, Step
from pipeflow.model import Truncated
from pipeflow.model.part import Part
from pipeflow.stage import Report, Stage, Update
from pipeflow.stream import Discard
from pipeflow.stream.links import LocalLink
from pipeflow.stream.process_links import Border, ProcessInbox, ProcessOutbox
from pipeflow.training.actnorm_init import start
from pipeflow.training.phase import Phase
from pipeflow.training.progress import Stopwatch
from pipeflow.training.recovery import NoRecovery
from pipeflow.training.state import fresh
from tests.support.processes import CONTEXT, in_processes
from tests.support.small_runs import fit_in, small_config

TICKS = 12


# --- law 5: what a later stage sends to an earlier one ---------------------------------------------------------------


def traffic_of_training(init_method: str, configs: list[Config]) -> list[dict[str, Any]]:
    """For each config: the bytes that this process's busiest incoming and outgoing sockets carried while training."""
    found = []
    for number, config in enumerate(configs):
        world = open_world(config.parallel, config.cut.parts, "cpu", f"{init_method}-{number}")
        images = load("digits", None, None)
        state = fresh(world, config, images, Pixels((1, 8, 8), images.levels))
        phase = Phase(state, 1, 0)
        phase.enter()
        start(state, (0, 1, 2))
        before = {s.fd: s for s in sockets()}
        pauses: Any = SimpleNamespace(check=lambda: None, evaluate=lambda: None, end_phase=lambda *_: None)
        phase.train(next(phase.segments), None, NoRecovery(state), pauses, Stopwatch(state.progress))
        world.barrier()
        after = {s.fd: s for s in sockets()}
        kept = before.keys() & after.keys()  # one of the run before may close meanwhile
        deltas = [(after[fd].sent - before[fd].sent, after[fd].received - before[fd].received) for fd in kept]
        found.append({"in": max(deltas, key=lambda d: d[1]), "out": max(deltas), "all": deltas})
        world.close()
    return found


@pytest.mark.parametrize("schedule", ["simultaneous", "alternate"])
def test_no_payload_travels_backward(tmp_path, schedule):
    turn = {"turn_steps": TICKS} if schedule == "alternate" else {}
    phases = [PhaseConfig(schedule, steps=TICKS, **turn)]
    batches = (12, 48)
    configs = [small_config(tmp_path / str(batch), phases, batch=batch) for batch in batches]
    ranks = in_processes(3, traffic_of_training, configs, directory=tmp_path / "meet")
    last = {"simultaneous": 2, "alternate": 0}[schedule]  # the first turn of alternate is part 1's alone
    for rank in range(3):
        small, large = ranks[rank]
        for found, batch in ((small, batches[0]), (large, batches[1])):
            payload = 4 * (4 * 4 * 4 if rank == 1 else 8 * 2 * 2) * batch + 4 * batch
            sent_back, received = found["in"]
            if 0 < rank <= last:
                assert received >= TICKS * payload, "the latents did arrive over this socket"
                assert 0 < sent_back <= 64 * TICKS
            elif rank > last:
                assert received < 4096, "a part behind the last learner gets control messages only"
        if 0 < rank <= last:
            assert small["in"][0] == large["in"][0], "what goes backward does not grow with the batch"
            assert large["in"][1] > 3 * small["in"][1]


# --- law 8: a slow part downstream -----------------------------------------------------------------------------------


def border(world: World, rank: int, packets: int, event: tuple[int, ...] = (64, 16, 16), batch: int = 8) -> Border:
    return Border(
        f"rank {rank}",
        world.edge(1 - rank),
        1 - rank,
        event,
        (batch,),
        packets,
        2,
        60.0,
        torch.device("cpu"),
        False,
        world.pulse,
    )


def slow_receiver(init_method: str, packets: int, progress: Any) -> tuple[int, int]:
    """Rank 0 sends as fast as it may, rank 1 dawdles; returns the largest lead of the sender and growth of memory."""
    world = open_world(ParallelConfig(), 2, "cpu", init_method)
    if world.rank == 1:
        inbox = ProcessInbox(border(world, 1, packets))
        for number in range(packets):
            time.sleep(0.002)
            packet = inbox.recv()
            assert packet.z[0, 0, 0, 0] == number and packet.logp[-1] == -number, "first in, first out, unharmed"
            progress.value = number + 1
        world.barrier()
        return 0, 0
    outbox = ProcessOutbox(border(world, 0, packets))
    lead, base = 0, 0
    for number in range(packets):
        outbox.send(Packet(torch.full((8, 64, 16, 16), float(number)), torch.full((8,), -float(number))))
        assert outbox.in_flight() <= 2
        lead = max(lead, number + 1 - progress.value)
        if number == packets // 4:
            base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    outbox.close()
    world.barrier()
    return lead, grown * 1024


def test_a_slow_part_holds_its_sender_back(tmp_path):
    """400 packets of 525 kB, 210 MB in all: the sender stays within `depth` and the receiver's two buffers."""
    progress = CONTEXT.Value("i", 0)
    lead, grown = in_processes(2, slow_receiver, 400, progress, directory=tmp_path)[0]
    assert lead <= 2 + 2 + 1
    assert grown < 16e6


def dawdle(init_method: str, config: Config) -> list[int]:
    """Trains with a last part that is slow; returns this process's resident bytes along the way."""
    tick, before, resident = Stage.tick, Stop.before, []

    def slowly(self: Stage, learn: bool = True) -> Report:
        if os.environ["RANK"] == "2":
            time.sleep(0.002)
        return tick(self, learn)

    def measured(self: Stop, step: int) -> None:
        before(self, step)
        if step in (400, 1000):
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())

    Stage.tick, Stop.before = slowly, measured  # type: ignore[method-assign]
    fit_in(init_method, config)
    return resident


def test_a_slow_last_part_leaves_every_process_as_large_as_it_was(tmp_path):
    """1,000 packets; a queue that grew would hold 600 × 96 × 65 floats, 15 MB, and a graph that lived on far more."""
    config = small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=1000)], batch=96)
    for early, late in in_processes(3, dawdle, config, directory=tmp_path / "meet"):
        assert late - early < 4e6


# --- law 9: the packet leaves before the backward pass ---------------------------------------------------------------


class Scale(Step):
    """z' = z · exp(s): the smallest step with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z * self.log_scale.exp(), z.new_zeros(len(z)) + self.log_scale * z[0].numel()


class Ones:
    """An inbox that never runs dry."""

    def recv(self) -> Packet:
        return Packet(torch.ones(4, 8), torch.zeros(4))


def make_stage(step: Step) -> Stage:
    truncated = Truncated(Part({0: step}, (8,)), StandardNormal((8,)), "prior")
    named = truncated.named_global_parameters()
    return Stage(truncated, Update(named, torch.optim.SGD(truncated.parameters(), lr=0.1), 0.1), 8)


def held_back(init_method: str, finished: Any) -> bool:
    """Rank 0's backward pass waits until rank 1 has finished the same batch; True if that ever happened."""
    world = open_world(ParallelConfig(), 2, "cpu", init_method)
    stage = make_stage(Scale())
    at = border(world, world.rank, 1, (8,), 4)
    if world.rank == 1:
        stage.connect(ProcessInbox(at), Discard())
        assert stage.tick().updated
        finished.set()
        world.barrier()
        return True
    waited = []

    def hold(gradient: torch.Tensor) -> None:
        waited.append(finished.wait(60))

    next(stage.truncated.parameters()).register_hook(hold)
    stage.connect(Ones(), ProcessOutbox(at))
    assert stage.tick().updated
    stage.outbox.close()
    world.barrier()
    return waited == [True]


def test_the_next_part_finishes_while_this_ones_backward_is_held_back(tmp_path):
    assert all(in_processes(2, held_back, CONTEXT.Event(), directory=tmp_path))


# --- one process, and what is not finite -----------------------------------------------------------------------------


def test_a_local_link_takes_sealed_packets_only_and_one_at_a_time():
    link = LocalLink()
    with pytest.raises(AssertionError):
        link.send(Packet(torch.ones(1, requires_grad=True), torch.ones(1)))
    link.send(Packet(torch.ones(1), torch.ones(1)))
    with pytest.raises(AssertionError):
        link.send(Packet(torch.ones(1), torch.ones(1)))
    assert link.in_flight() == 1
    link.recv()
    link.close()


class Poisoned:
    """Every second packet holds a NaN."""

    def __init__(self) -> None:
        self.count = 0

    def recv(self) -> Packet:
        self.count += 1
        z = torch.ones(4, 8)
        z[0, 0] = math.nan if self.count % 2 == 0 else 1.0
        return Packet(z, torch.zeros(4))


def test_an_update_that_is_not_finite_is_skipped_and_reported():
    stage = make_stage(Scale())
    stage.connect(Poisoned(), Discard())
    parameter = next(stage.truncated.parameters())
    first = stage.tick()
    before = parameter.clone()
    second = stage.tick()
    assert (first.updated, first.bad, second.updated, second.bad) == (True, False, False, True)
    assert torch.equal(parameter, before)
    assert stage.tick().updated and not torch.equal(parameter, before)


def test_a_forward_only_tick_changes_nothing():
    stage = make_stage(Scale())
    stage.connect(Ones(), Discard())
    before = next(stage.truncated.parameters()).clone()
    report = stage.tick(learn=False)
    assert not report.updated and math.isfinite(report.bits_per_dim)
    assert torch.equal(next(stage.truncated.parameters()), before)
    assert next(stage.truncated.parameters()).grad is None
