"""Runs, links and faults over a transport with NCCL's manners, those of its older and of its newer backend."""

import json
import re
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeflow.config import PhaseConfig
from pipeflow.distributed import ParallelConfig, open_world
from pipeflow.errors import LostError
from pipeflow.flow import Packet
from pipeflow.model import CutConfig
from pipeflow.storage import checkpoint
from pipeflow.stream import Chain
from pipeflow.stream.process_links import ProcessInbox, ProcessOutbox
from tests.support.fault_injection import at_the_batch, freeze, hang, in_a_call, kill, run, terminate
from tests.support.nccl_manners import RudeGroup, install, with_manners
from tests.support.processes import CONTEXT, in_processes
from tests.support.small_runs import fit_in, small_config
from tests.training.test_faults import HANGS, SILENT, WORDS

PHASES = [
    PhaseConfig("simultaneous", steps=4),
    PhaseConfig("alternate", steps=4, turn_steps=1),
    PhaseConfig("sequential", steps=3),
    PhaseConfig("end_to_end", steps=3, clip=1.0),
]
both_backends = pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A chain of three parts, and one of two, in one process."""
    directory = tmp_path_factory.mktemp("one")
    fit_in("", small_config(directory / "three", PHASES))
    fit_in("", two_parts(directory / "two"))
    return directory


def two_parts(directory: Path):
    cut = CutConfig("explicit", 2, [2], provisional_prior="learned")
    return small_config(directory, PHASES[::3], cut=cut)


def bits_per_dim(directory: Path) -> float:
    return json.loads((directory / "result.json").read_text())["test_bits_per_dim"]


@pytest.mark.parametrize(
    ("eager", "resumed"), [(False, False), (True, False), (False, True)], ids=["lazy", "eager", "lazy, resumed"]
)
def test_a_chain_is_one_process_to_the_bit_until_it_joins(one, tmp_path, eager, resumed):
    """The processes connect at ActNorm's start, or where they go on from a checkpoint in the training loop."""
    resume = one / "three" / "checkpoints" / "step-8" if resumed else None
    config = small_config(tmp_path / "run", PHASES)
    in_processes(3, with_manners, eager, fit_in, config, resume, directory=tmp_path / "meet", timeout_s=60)
    for step in ("step-8", "step-11")[resumed:]:
        expected, found = (checkpoint.load(at / "checkpoints" / step)[0] for at in (one / "three", tmp_path / "run"))
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert bits_per_dim(tmp_path / "run") == pytest.approx(bits_per_dim(one / "three"), abs=1e-4)


@both_backends
def test_two_replicas_of_two_processes_are_one_process_within_float_tolerance(one, tmp_path, eager):
    config = two_parts(tmp_path / "run")
    in_processes(4, with_manners, eager, fit_in, config, directory=tmp_path / "meet", timeout_s=60)
    assert bits_per_dim(tmp_path / "run") == pytest.approx(bits_per_dim(one / "two"), abs=1e-4)


@both_backends
def test_unequal_replicas_are_one_process_within_float_tolerance(one, tmp_path, eager):
    """Processes that send to two, and receive from two, connect in the order of the images."""
    config = small_config(tmp_path / "run", PHASES, parallel=ParallelConfig(replicas=[2, 3, 1], micro_batches=2))
    in_processes(6, with_manners, eager, fit_in, config, directory=tmp_path / "meet", timeout_s=100)
    assert bits_per_dim(tmp_path / "run") == pytest.approx(bits_per_dim(one / "three"), abs=1e-4)


# --- one link --------------------------------------------------------------------------------------------------------

TIMEOUT_S = 1.0


def dawdles(init_method, opening):
    """The second of three packets comes when the receive for it is older than the time-out, the third never."""
    world = open_world(ParallelConfig(timeout_s=TIMEOUT_S, heartbeat_s=0.1), 2, "cpu", init_method)
    border = Chain(world, [(2,), (2,)], "").border(world.rank, 1 - world.rank, "with", (1,), 3)
    if world.rank == 0:
        opening.wait()
        outbox = ProcessOutbox(border)
        for number in range(2):
            outbox.send(Packet(torch.full((1, 2), float(number)), torch.zeros(1)))
            time.sleep(1.5 * TIMEOUT_S * (1 - number))
        time.sleep(4 * TIMEOUT_S)  # the receiver must not find its peer gone
        return []
    seen, opened = [], []
    threading.Timer(0.2, lambda: (seen.append((bool(opened), world.pulse.waits_for)), opening.set())).start()
    inbox = ProcessInbox(border)
    opened.append(inbox)
    found = [inbox.recv().z.tolist()]
    time.sleep(1.2 * TIMEOUT_S)
    found.append(inbox.recv().z.tolist())
    with pytest.raises(LostError) as caught:
        inbox.recv()
    time.sleep(1.5)  # a transport whose own time has passed would end this process now
    return [*found, seen, str(caught.value), caught.value.rank, caught.value.timed_out]


@both_backends
def test_a_packet_is_late_when_it_was_waited_for_too_long_and_then_the_link_says_so(tmp_path, eager):
    _, (first, second, seen, said, rank, timed_out) = in_processes(
        2, with_manners, eager, dawdles, CONTEXT.Event(), directory=tmp_path, timeout_s=60
    )
    assert (first, second) == ([[0.0, 0.0]], [[1.0, 1.0]])
    assert said == "part 2 (rank 1), with part 1 (rank 0): packet 3 of 3 did not pass: timed out after 1 s"
    assert (rank, timed_out) == (0, True)
    assert seen == [(eager, 0)], "a process that connects to another waits for it"


# --- faults ----------------------------------------------------------------------------------------------------------


def over(eager, fault, scene):
    """The fault, in processes whose groups have these manners."""
    install(eager)
    fault(scene)


def stick(scene):
    """The collectives of this process never end any more, though all processes have come."""

    def sticks() -> None:
        RudeGroup.stuck = True

    at_the_batch(scene, sticks)


def hang_at_the_switch(scene):
    """An endless loop where the others wait for this process to open a group."""
    import pipeflow.training.stages

    def forever() -> None:
        while True:
            time.sleep(0.1)

    def in_the_last_phase(_world, _module, members) -> int:
        return scene.step if members == "everyone" else -1

    in_a_call(scene, pipeflow.training.stages, "average_gradients", forever, in_the_last_phase)


BY_PARTS = [{"schedule": "simultaneous", "steps": 12}]
END_TO_END = [{"schedule": "simultaneous", "steps": 2}, {"schedule": "end_to_end", "steps": 10}]
SILENCE = r"no sign of life for [\d.]+ s: killed, stopped"
HANGING = r"hangs, nothing (came for 4 s|was done for \d+ s) \(parallel.timeout_s\)"
STUCK = r"or another process of the same step: all wait for each other, nothing was done for \d+ s"
CASES = {
    "frozen, by parts": (False, freeze, BY_PARTS, 1, rf"part 2 \(rank 1\), .*step \d+: {SILENCE}", SILENT),
    "killed, by parts": (True, kill, BY_PARTS, 1, rf"part 2 \(rank 1\), .*step \d+: {SILENCE}", SILENT),
    "hanging, by parts": (False, hang, BY_PARTS, 2, rf"part 3 \(rank 2\), .*step 3: {HANGING}", HANGS),
    "killed, end to end": (False, kill, END_TO_END, 2, rf"part 3 \(rank 2\), .*step \d+: {SILENCE}", SILENT),
    "hanging, end to end": (True, hang, END_TO_END, 2, rf"part 3 \(rank 2\), .*step 3: {HANGING}", HANGS),
    "hanging at the switch": (True, hang_at_the_switch, END_TO_END, 2, rf"part 3 .*step 2: {HANGING}", HANGS),
    "a collective that sticks": (True, stick, END_TO_END, 1, rf"part \d \(rank \d\), step 4, {STUCK}", HANGS),
    "SIGTERM, by parts": (False, terminate, BY_PARTS, 2, r"stopped at step \d+ by SIGTERM; --resume", SILENT),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_in_time_and_one_line_says_why(name, tmp_path):
    eager, fault, phases, rank, says, within_s = CASES[name]
    words = ["--run_dir", str(tmp_path / "run"), *WORDS, "--phases", json.dumps(phases)]
    ended = run(3, words, tmp_path / "meet", partial(over, eager, fault), rank=rank, target=rank, step=4)
    assert (tmp_path / "meet" / "fired").exists(), "the fault was never there"
    code = 75 if fault is terminate else 1
    by_force = {-9} if fault in (kill, freeze) else set()
    for other, found in enumerate(ended.codes):
        assert found == code or (other == rank and found in by_force), (ended.codes, ended.said)
    assert ended.seconds < within_s, ended.said
    (line,) = ended.lines
    assert re.match(rf"pipeflow: {says}", line), line
