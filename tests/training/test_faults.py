"""Whatever ends a run, it ends in time, one line says why, and resuming gives the bits of a run that nothing disturbed.

Every case proves that its fault was there: the scene leaves a file "fired" with the step.
"""

import json
import os
import re
import resource
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pipeflow.storage import checkpoint
from tests.support.fault_injection import (
    Fault,
    Scene,
    at_the_batch,
    fail,
    freeze,
    hang,
    in_a_call,
    kill,
    run,
    terminate,
    user_signal,
)

# Four phases, steps 1–12, 13–24, 25–33 and 34–43; a checkpoint every 5 steps.
PHASES = [
    {"schedule": "simultaneous", "steps": 12, "warmup_steps": 4},
    {"schedule": "alternate", "steps": 12, "turn_steps": 3},
    {"schedule": "sequential", "steps": 9},
    {"schedule": "end_to_end", "steps": 10, "clip": 1.0, "warmup_steps": 4},
]
HEARTBEAT_S, TIMEOUT_S = 0.5, 4.0
SMALL = [
    *("--device", "cpu", "--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "8"),
    *("--glow.top_prior", "learned", "--data.batch", "12", "--data.init_batch", "32"),
    *("--cut.provisional_prior", "learned"),
]
WORDS = [
    *(*SMALL, "--phases", json.dumps(PHASES), "--eval_every", str(7 / 125), "--checkpoint.every", "5"),
    *("--parallel.heartbeat_s", str(HEARTBEAT_S), "--parallel.timeout_s", str(TIMEOUT_S)),
]
# Seconds from the fault to the end of the last process. At once: the system says so. Silent: five heartbeats are
# missed. Hangs: a packet is waited for. What a busy machine adds comes on top.
SLACK_S = 10.0
AT_ONCE, SILENT, HANGS = SLACK_S, 6 * HEARTBEAT_S + SLACK_S, TIMEOUT_S + 4 * HEARTBEAT_S + SLACK_S


class Case(NamedTuple):
    """A fault and how the run has to end."""

    size: int
    fault: Fault
    step: int
    rank: int
    target: int
    code: int  # of the processes that the fault does not end itself
    says: str  # a pattern of the one line
    within_s: float = AT_ONCE
    engine: str = "ddp"


def piped(case: Case) -> Case:
    """The same, where the end-to-end phase is a pipeline."""
    return case._replace(engine="pipeline")


def dies(size: int, fault: Fault, step: int, rank: int, target: int | None = None, within_s: float = AT_ONCE) -> Case:
    """A process is gone: the line names its parts, its rank and the step."""
    target = rank if target is None else target
    return Case(size, fault, step, rank, target, 1, rf"parts? .*\(rank {target}\), .*step \d+: ", within_s)


def stops(size: int, fault: Fault, step: int, rank: int, target: int | None = None) -> Case:
    """A process is asked to stop: all do, behind the same batch."""
    name = {"terminate": "SIGTERM", "user_signal": "SIGUSR1"}[fault.__name__]
    return Case(
        size, fault, step, rank, rank if target is None else target, 75, rf"stopped at step \d+ by {name}; --res"
    )


def raises(size: int, fault: Fault, step: int, rank: int, cause: str) -> Case:
    """A process raises: it says so itself."""
    return Case(size, fault, step, rank, rank, 1, rf"(parts? .*\(rank {rank}\), step \d+: )?{cause}")


def killed_in_evaluation(scene: Scene) -> None:
    import pipeflow.training.pauses

    in_a_call(
        scene,
        pipeflow.training.pauses,
        "evaluate",
        lambda: os.kill(scene.pid(), 9),
        lambda chain, *_: chain.world.pulse.step,
    )


def killed_at_the_start(scene: Scene) -> None:
    import pipeflow.training.phase

    in_a_call(
        scene, pipeflow.training.phase, "start", lambda: os.kill(scene.pid(), 9), lambda state, _: state.progress.step
    )


def killed_at_the_switch(scene: Scene) -> None:
    import pipeflow.training.modes

    in_a_call(
        scene, pipeflow.training.modes, "join", lambda: os.kill(scene.pid(), 9), lambda state: state.progress.step
    )


def killed_while_writing(scene: Scene) -> None:
    step = lambda partial, *_: int(re.findall(r"\d+", partial.name)[0])  # noqa: E731
    in_a_call(scene, checkpoint, "write_part", lambda: os.kill(scene.pid(), 9), step)


def killed_before_the_manifest(scene: Scene) -> None:
    in_a_call(scene, checkpoint, "publish", lambda: os.kill(scene.pid(), 9), lambda _, manifest: manifest.step)


def killed_while_removing(scene: Scene) -> None:
    step = lambda directory: int(re.findall(r"\d+", directory.name)[0])  # noqa: E731
    in_a_call(scene, checkpoint, "discard", lambda: os.kill(scene.pid(), 9), step)


def disk_full(scene: Scene) -> None:
    """No file may grow beyond 8 KiB any more: what a full disk or a quota does, from the system itself."""
    at_the_batch(scene, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY)))


def bad_losses(scene: Scene) -> None:
    """From the scene on, every loss of this process's first part is not a number."""
    from pipeflow.stage import EagerStep

    def spoil() -> None:
        backward = EagerStep.backward
        EagerStep.backward = lambda self, nll, number=0: backward(self, nll * float("nan"), number)  # type: ignore[method-assign]

    at_the_batch(scene, spoil)


def fails_in_a_step(scene: Scene) -> None:
    """An exception in the middle of a part's forward pass."""
    from pipeflow.model.part import Part

    def boom() -> None:
        def forward(self: Part, given: object) -> None:
            raise RuntimeError("boom")

        Part.forward = forward  # type: ignore[assignment, method-assign]

    at_the_batch(scene, boom)


NO_SPACE = r"the checkpoint of step \d+ cannot be written: File too large"
CASES = {
    # one process gone: simultaneous 8, alternate 17 (part 2 learns), sequential 29 (part 2 learns), end to end 39
    "killed, simultaneous, head of 3": dies(3, kill, 8, 0),
    "killed, simultaneous, middle of 3": dies(3, kill, 8, 1),
    "killed, simultaneous, tail of 3": dies(3, kill, 8, 2),
    "killed, simultaneous, one of 2": dies(2, kill, 8, 1),
    "killed, alternate, head of 3": dies(3, kill, 17, 0),
    "killed, alternate, learner of 3": dies(3, kill, 17, 1),
    "killed, alternate, idle one of 3": dies(3, kill, 17, 0, target=2, within_s=SILENT),
    "killed, sequential, learner of 3": dies(3, kill, 29, 1),
    "killed, sequential, idle one of 3": dies(3, kill, 26, 0, target=2, within_s=SILENT),
    "killed, sequential, one of 2": dies(2, kill, 32, 0),
    "killed, end to end, first of 3": dies(3, kill, 39, 0, within_s=SILENT),
    "killed, end to end, last of 3": dies(3, kill, 39, 2, within_s=SILENT),
    "killed, end to end, one of 2": dies(2, kill, 39, 1, within_s=SILENT),
    "killed, a pipeline's first of 3": piped(dies(3, kill, 39, 0, within_s=SILENT)),
    "killed, a pipeline's middle of 3": piped(dies(3, kill, 39, 1, within_s=SILENT)),
    "killed, a pipeline's last of 3": piped(dies(3, kill, 39, 2, within_s=SILENT)),
    "killed before anything was saved": dies(3, kill, 3, 1),
    "killed at ActNorm's start": dies(3, killed_at_the_start, 0, 1),
    "killed in an evaluation": dies(3, killed_in_evaluation, 12, 1),
    "killed at the switch to end to end": dies(3, killed_at_the_switch, 33, 1, within_s=SILENT),
    "killed while writing its part": dies(3, killed_while_writing, 10, 1),
    "killed before the manifest": dies(3, killed_before_the_manifest, 20, 0, within_s=SILENT),
    "killed while removing an old checkpoint": dies(3, killed_while_removing, 5, 0, within_s=SILENT),
    # stopped, hanging
    "frozen, simultaneous, middle of 3": dies(3, freeze, 8, 1, within_s=SILENT),
    "frozen, alternate, idle one of 3": dies(3, freeze, 14, 0, target=2, within_s=SILENT),
    "frozen, end to end, one of 2": dies(2, freeze, 39, 1, within_s=SILENT),
    "hanging, simultaneous, middle of 3": dies(3, hang, 8, 1, within_s=HANGS),
    "hanging, simultaneous, tail of 3": dies(3, hang, 8, 2, within_s=HANGS),
    "hanging, alternate, alone of 3": dies(3, hang, 14, 0, within_s=HANGS),
    "hanging, end to end, last of 3": dies(3, hang, 39, 2, within_s=HANGS),
    "frozen, a pipeline's middle of 3": piped(dies(3, freeze, 39, 1, within_s=SILENT)),
    "hanging, a pipeline's last of 3": piped(dies(3, hang, 39, 2, within_s=HANGS)),
    # asked to stop
    "SIGTERM, simultaneous, head of 3": stops(3, terminate, 8, 0),
    "SIGTERM, simultaneous, tail of 3": stops(3, terminate, 8, 2),
    "SIGTERM, alternate, idle one of 3": stops(3, terminate, 14, 0, target=2),
    "SIGTERM, sequential, learner of 2": stops(2, terminate, 31, 1),
    "SIGTERM, end to end, last of 3": stops(3, terminate, 36, 2),
    "SIGTERM, alone": stops(1, terminate, 8, 0),
    "SIGTERM, a pipeline's last of 3": piped(stops(3, terminate, 36, 2)),
    "SIGUSR1, simultaneous, middle of 3": stops(3, user_signal, 2, 1),
    "SIGUSR1, end to end, one of 2": stops(2, user_signal, 36, 1),
    # raising
    "an exception, simultaneous, middle of 3": raises(3, fail, 8, 1, "RuntimeError: boom"),
    "an exception, alternate, head of 2": raises(2, fail, 17, 0, "RuntimeError: boom"),
    "an exception, end to end, last of 3": raises(3, fail, 39, 2, "RuntimeError: boom"),
    "an exception, a pipeline's last of 3": piped(raises(3, fail, 39, 2, "RuntimeError: boom")),
    "an exception in a pipeline's step": piped(raises(3, fails_in_a_step, 39, 1, "RuntimeError: boom")),
    "an exception, alone": raises(1, fail, 29, 0, "RuntimeError: boom"),
    "a full disk, simultaneous, middle of 3": raises(3, disk_full, 8, 1, NO_SPACE),
    "a full disk, end to end, first of 3": raises(3, disk_full, 36, 0, NO_SPACE),
    "a full disk, alone": raises(1, disk_full, 16, 0, NO_SPACE),
    "losses that are not finite, middle of 3": raises(3, bad_losses, 2, 1, r"part 2 \(rank 1\) stops at step 11: "),
    "losses that are not finite, end to end": raises(
        2, bad_losses, 34, 1, r"end to end \(rank \d\) stops at step 43: "
    ),
    # two replicas of two processes: parts 1 and 2 on ranks 0 and 2, part 3 on ranks 1 and 3
    "killed, simultaneous, head of replica 2": dies(4, kill, 8, 2, within_s=SILENT),
    "killed, alternate, learner of replica 2": dies(4, kill, 17, 2, within_s=SILENT),
    "killed, end to end, tail of replica 1": dies(4, kill, 39, 1, within_s=SILENT),
    "killed, a pipeline's head of replica 2": piped(dies(4, kill, 39, 2, within_s=SILENT)),
    "hanging, simultaneous, tail of replica 2": dies(4, hang, 8, 3, within_s=HANGS),
    "SIGTERM, alternate, a head that does not learn": stops(4, terminate, 20, 2),
    # three processes share part 1 (ranks 0 to 2), one has part 2, two share part 3
    "killed, simultaneous, a replica of part 1": dies(6, kill, 8, 1, within_s=SILENT),
    "killed, alternate, a learning replica of part 3": dies(6, kill, 20, 5, within_s=SILENT),
    "killed, end to end, between unequal replicas": dies(6, kill, 39, 3, within_s=SILENT),
    "SIGTERM, alternate, a replica of the head that does not learn": stops(6, terminate, 17, 2),
    "losses that are not finite, in replica 2 alone": raises(
        4, bad_losses, 2, 2, r"part 1 \(rank [02]\) stops at step 11: "
    ),
}


def spread(size: int, engine: str) -> list[str]:
    """Words for as many processes as are no chain of three parts, and for an engine."""
    replicas = {4: ["--parallel.replicas", "2"], 6: ["--parallel.replicas", "[3, 1, 2]"]}
    return ["--end_to_end.engine", engine, *replicas.get(size, [])]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """size, engine, words → the run directory of a run that nothing disturbed, one run for all cases of them."""
    runs: dict[tuple[str | int, ...], Path] = {}

    def of(size: int, engine: str = "ddp", more: tuple[str, ...] = ()) -> Path:
        if (size, engine, *more) not in runs:
            directory = tmp_path_factory.mktemp("undisturbed")
            words = ["--run_dir", str(directory / "run"), *WORDS, *spread(size, engine), *more]
            ended = run(size, words, directory / "meet")
            assert ended.codes == [0] * size, ended.said
            runs[size, engine, *more] = directory / "run"
        return runs[size, engine, *more]

    return of


def assert_same_bits(one: Path, other: Path, steps: int = 43) -> None:
    """Weights, moments and every loss on the way, without gaps or repetitions."""
    tensors, manifest = checkpoint.load(one / "checkpoints" / f"step-{steps}")
    others, other_manifest = checkpoint.load(other / "checkpoints" / f"step-{steps}")
    assert tensors.keys() == others.keys() and manifest.started == other_manifest.started
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    for name in ("part-1", "part-2", "part-3", "end_to_end", "evaluation"):
        streams = [(run / "metrics" / f"{name}.jsonl").read_text().splitlines() for run in (one, other)]
        figures = [[(line["step"], line["bits_per_dim"]) for line in map(json.loads, lines)] for lines in streams]
        assert figures[0] == figures[1], name
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert results[0]["test_bits_per_dim"] == results[1]["test_bits_per_dim"]
    phases = [[(phase["schedule"], phase["steps"]) for phase in result["phases"]] for result in results]
    assert phases[0] == phases[1]


@pytest.mark.parametrize("name", CASES)
def test_the_run_ends_and_goes_on(name, undisturbed, tmp_path):
    case = CASES[name]
    directory = tmp_path / "run"
    scene = {"rank": case.rank, "target": case.target, "step": case.step}
    words = ["--run_dir", str(directory), *WORDS, *spread(case.size, case.engine)]
    ended = run(case.size, words, tmp_path / "first", case.fault, **scene)

    assert (tmp_path / "first" / "fired").read_text() == str(case.step), "the fault was never there"
    by_force = {-9} if case.fault in (kill, freeze) or "killed" in name else set()
    for rank, code in enumerate(ended.codes):
        assert code == case.code or (rank == case.target and code in by_force), (ended.codes, ended.said)
    assert ended.seconds < case.within_s, ended.said
    if not (case.size == 1 and by_force):
        (line,) = ended.lines
        assert re.match(rf"pipeflow: {case.says}", line), line

    resumed = run(case.size, ["--run_dir", str(directory), "--resume", "auto"], tmp_path / "second")
    assert resumed.codes == [0] * case.size, resumed.said
    if case.fault is not bad_losses:  # updates that were skipped are in the checkpoints
        assert_same_bits(undisturbed(case.size, case.engine), directory)


def loads_slowly(scene: Scene) -> None:
    import pipeflow.data.user_arrays

    in_a_call(scene, pipeflow.data.user_arrays, "load", lambda: time.sleep(TIMEOUT_S + 4 * HEARTBEAT_S), lambda *_: 0)


def test_a_data_set_that_takes_long_to_load_is_waited_for(tmp_path):
    phases = ["--phases", '[{"schedule": "simultaneous", "steps": 2}]']
    words = ["--run_dir", str(tmp_path / "run"), *WORDS, *phases]
    ended = run(2, words, tmp_path / "meet", loads_slowly, rank=0, target=0, step=0)
    assert (tmp_path / "meet" / "fired").exists() and ended.codes == [0, 0], ended.said


def test_in_a_pipeline_nobody_is_waited_for(tmp_path):
    """`parallel.rejoin_s` is for training by parts; end to end a loss ends the run."""
    words = ["--run_dir", str(tmp_path / "run"), *WORDS, *spread(3, "pipeline"), "--parallel.rejoin_s", "60"]
    ended = run(3, words, tmp_path / "meet", kill, rank=1, target=1, step=39)
    assert ended.codes == [1, -9, 1] and ended.seconds < SILENT, ended.said


def test_there_are_enough_cases():
    assert len(CASES) >= 30
    assert {case.size for case in CASES.values()} == {1, 2, 3, 4, 6}
    assert {case.fault for case in CASES.values()} >= {kill, terminate, user_signal, freeze, hang, fail, disk_full}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_random_kills(seed, undisturbed, tmp_path):
    """Three kills in a row, at any step, of any process, each in what the one before it left."""
    generator = torch.Generator().manual_seed(seed)
    directory, reached = tmp_path / "run", 0
    for number in range(3):
        rank = int(torch.randint(3, (), generator=generator))
        step = int(torch.randint(reached + 1, 43, (), generator=generator))
        words = ["--run_dir", str(directory), *WORDS, "--resume", "auto"]
        ended = run(3, words, tmp_path / f"meet-{number}", kill, rank=0, target=rank, step=step)
        assert ended.codes[rank] == -9 and 0 not in ended.codes, ended.said
        reached = max(checkpoint.steps_saved(directory), default=0)
    ended = run(3, ["--run_dir", str(directory), *WORDS, "--resume", "auto"], tmp_path / "meet-last")
    assert ended.codes == [0, 0, 0], ended.said
    assert_same_bits(undisturbed(3), directory)


def test_a_fault_that_never_comes_is_noticed(tmp_path):
    """What every case relies on: without its fault a run succeeds and leaves no "fired"."""
    words = ["--run_dir", str(tmp_path / "run"), *WORDS]
    ended = run(1, words, tmp_path / "meet", kill, rank=0, target=0, step=99)
    assert ended.codes == [0] and not (tmp_path / "meet" / "fired").exists()
