"""A process that is lost while training by parts comes back alone: the others live on, with the bits of no loss."""

import os
import sys
import time
from typing import NamedTuple

import pytest

from pipeflow.config import PhaseConfig
from pipeflow.distributed import ParallelConfig, ResumePoint, open_world
from pipeflow.distributed.process_world import ProcessWorld
from pipeflow.model import CutConfig
from pipeflow.training import fit
from pipeflow.training.pauses import Pauses
from pipeflow.training.prepare import prepare
from pipeflow.training.snapshot import keep_snapshot, load_snapshot
from tests.support.fault_injection import Fault, Scene, at_the_batch, fail, in_a_call, kill, run
from tests.support.processes import in_processes
from tests.support.small_runs import fit_in, small_config
from tests.training.test_faults import (
    WORDS,
    assert_same_bits,
    killed_before_the_manifest,
    killed_in_evaluation,
    killed_while_removing,
    killed_while_writing,
    undisturbed,  # noqa: F401 - a fixture
)

# By parts until step 33, with a pause every 5 steps, every 7 steps, and at the turns; then end to end until 43.
# Packets that are due are waited for so long that no case can rely on it: a loss is noticed, not timed out.
WAITS = ["--parallel.rejoin_s", "60", "--parallel.timeout_s", "60"]


class Case(NamedTuple):
    """A fault, and who has to start again."""

    size: int
    fault: Fault
    step: int
    rank: int
    again: tuple[int, ...] = ()  # by default the lost process alone
    words: tuple[str, ...] = ()


EVERYONE = (0, 1, 2)
TURNS = (
    "--phases",
    '[{"schedule": "alternate", "steps": 33, "turn_steps": 3}, {"schedule": "end_to_end", "steps": 10}]',
)
PACKETS = ("--parallel.micro_batches", "3")
SOON = ("--parallel.timeout_s", "8")
HEADS = ("--cut.provisional_prior", "flow")
LABELS = ("--flow", "jet", "--jet", "{couplings: 6, depth: 1, width: 8, heads: 2, patch: 2}", "--data.labels", "true")


def kill_the_two_behind(scene: Scene) -> None:
    def act() -> None:
        for rank in (scene.target + 1, scene.target + 2):
            os.kill(scene._replace(target=rank).pid(), 9)

    at_the_batch(scene, act)


def killed_as_it_closes_its_links(scene: Scene) -> None:
    import pipeflow.training.phase

    in_a_call(scene, pipeflow.training.phase, "close", lambda: os.kill(scene.pid(), 9), lambda *_, **__: scene.step)


def killed_between_packets(scene: Scene) -> None:
    """After a batch's second packet has left and before it is learned from."""
    from pipeflow.stage import EagerStep

    def step(stage: EagerStep, nll: object, number: int) -> int:
        return stage._update.attempts + 1 if number == 1 else 0

    in_a_call(scene, EagerStep, "backward", lambda: os.kill(scene.pid(), 9), step)


def killed_and_then_another(scene: Scene) -> None:
    """A second process is lost while it meets the others because of the first."""
    from pipeflow.distributed.process_world import ProcessWorld

    kill(scene)
    other = scene._replace(rank=2, target=2)
    in_a_call(other, ProcessWorld, "rejoin", lambda: os.kill(os.getpid(), 9), lambda *_: scene.step)


def killed_while_connecting(scene: Scene, number: int = 1) -> None:
    """The process connects for the first time, or the second one; the others wait for its address."""
    from pipeflow.distributed import process_world

    calls: list[int] = []

    def step(*_: object) -> int:
        calls.append(1)
        return scene.step if len(calls) == number else -1

    in_a_call(scene, process_world, "open_control_group", lambda: os.kill(os.getpid(), 9), step)


def killed_and_then_another_while_connecting(scene: Scene) -> None:
    kill(scene)
    killed_while_connecting(scene._replace(rank=2, target=2), number=2)


def killed_before_it_keeps_a_segment(scene: Scene) -> None:
    import pipeflow.training.recovery

    def act() -> None:
        time.sleep(1)  # the others have kept theirs by now
        os.kill(scene.pid(), 9)

    in_a_call(scene, pipeflow.training.recovery, "keep_snapshot", act, lambda state, at: at.step)


def killed_as_it_has_kept_a_segment(scene: Scene) -> None:
    """All have met by then, and one goes on; another one, the next by rank, does not see it."""
    from pipeflow.errors import LostError
    from pipeflow.training.recovery import Recovery

    keep, fired = Recovery.keep, scene.directory / "fired"

    def meets(self: Recovery, at: ResumePoint) -> None:
        keep(self, at)
        if at.step == scene.step and not fired.exists() and scene.process == scene.rank:
            time.sleep(0.5)
            scene.fires()
            os.kill(scene.pid(), 9)
        if at.step == scene.step and scene.process == (scene.rank + 1) % 3:
            while not fired.exists():
                time.sleep(0.01)
            raise LostError("the processes no longer meet")

    Recovery.keep = meets  # type: ignore[method-assign]


def killed_while_drawing(scene: Scene) -> None:
    from pipeflow.training.recorder import Record

    in_a_call(scene, Record, "_draw_samples", lambda: os.kill(scene.pid(), 9), lambda record: record.progress.step)


def killed_while_parts_start(scene: Scene) -> None:
    """Packets have gone down the chain, and not all processes have seen the end of it."""
    import pipeflow.training.actnorm_init

    in_a_call(
        scene,
        pipeflow.training.actnorm_init,
        "close",
        lambda: os.kill(scene.pid(), 9),
        lambda links: sys._getframe(2).f_locals["state"].progress.step,
    )


CASES = {
    "head, simultaneous": Case(3, kill, 3, 0),
    "middle, simultaneous": Case(3, kill, 4, 1),
    "tail, simultaneous": Case(3, kill, 9, 2),
    "last batch of a segment, head": Case(3, kill, 5, 0),
    "last batch of a segment, tail": Case(3, kill, 5, 2),
    "first batch of a segment": Case(3, kill, 6, 1),
    "links of a segment being closed": Case(3, killed_as_it_closes_its_links, 1, 1),
    "exception in the middle": Case(3, fail, 8, 1),
    "alternate, the learner": Case(3, kill, 17, 1),
    "alternate, one before the learner": Case(3, kill, 20, 0),
    "alternate, one that has nothing to do": Case(3, killed_as_it_closes_its_links, 1, 2),
    "sequential, the learner": Case(3, kill, 29, 1),
    "sequential, a frozen head": Case(3, kill, 32, 0),
    "two at once": Case(3, kill_the_two_behind, 9, 0, again=(1, 2)),
    "another while they meet again": Case(3, killed_and_then_another, 4, 1, again=(1, 2)),
    "behind heads": Case(3, kill, 9, 1, words=HEADS),
    "with labels": Case(3, kill, 9, 1, words=(*LABELS, *HEADS, *PACKETS)),
    "between packets, head": Case(3, killed_between_packets, 9, 0, words=PACKETS),
    "between packets, middle": Case(3, killed_between_packets, 3, 1, words=PACKETS),
    "between packets, tail": Case(3, killed_between_packets, 9, 2, words=PACKETS),
    "2 processes, the one of two parts": Case(2, kill, 9, 0),
    "2 processes, the other": Case(2, kill, 19, 1),
    "in an evaluation, middle": Case(3, killed_in_evaluation, 14, 1),
    "in an evaluation, head": Case(3, killed_in_evaluation, 7, 0),
    "while saving, middle": Case(3, killed_while_writing, 10, 1),
    "while saving, head": Case(3, killed_while_writing, 10, 0),
    "before the manifest": Case(3, killed_before_the_manifest, 20, 0),
    "while removing an old checkpoint": Case(3, killed_while_removing, 5, 0),
    "in the evaluation at a phase's end": Case(3, killed_in_evaluation, 12, 1),
    "while saving at a phase's end": Case(3, killed_while_writing, 12, 1),
    "while samples are drawn at a phase's end": Case(3, killed_while_drawing, 24, 0),
    "before it keeps a phase, head": Case(3, killed_before_it_keeps_a_segment, 12, 0),
    "before it keeps a phase, middle": Case(3, killed_before_it_keeps_a_segment, 24, 1),
    "before it keeps a phase, tail": Case(3, killed_before_it_keeps_a_segment, 12, 2),
    "as it has kept a phase, head": Case(3, killed_as_it_has_kept_a_segment, 24, 0, words=HEADS),
    "as it has kept a phase, middle": Case(3, killed_as_it_has_kept_a_segment, 12, 1),
    "as it has kept a phase, tail": Case(3, killed_as_it_has_kept_a_segment, 12, 2, words=HEADS),
    "saving before it goes end to end": Case(3, killed_while_writing, 33, 0),
    "in the first segment, which it has not kept": Case(3, killed_before_it_keeps_a_segment, 0, 1, again=EVERYONE),
    "before it keeps a segment, head": Case(3, killed_before_it_keeps_a_segment, 5, 0),
    "before it keeps a segment, middle": Case(3, killed_before_it_keeps_a_segment, 10, 1),
    "before it keeps a segment, tail": Case(3, killed_before_it_keeps_a_segment, 7, 2),
    "before it keeps a turn, head": Case(3, killed_before_it_keeps_a_segment, 15, 0),
    "before it keeps a turn, middle": Case(3, killed_before_it_keeps_a_segment, 18, 1),
    "before it keeps a turn, tail": Case(3, killed_before_it_keeps_a_segment, 21, 2),
    "as it has kept a segment, head": Case(3, killed_as_it_has_kept_a_segment, 5, 0),
    "as it has kept a segment, middle": Case(3, killed_as_it_has_kept_a_segment, 10, 1),
    "as it has kept a segment, tail": Case(3, killed_as_it_has_kept_a_segment, 7, 2),
    "as it has kept a turn, head": Case(3, killed_as_it_has_kept_a_segment, 15, 0),
    "as it has kept a turn, middle": Case(3, killed_as_it_has_kept_a_segment, 18, 1, words=HEADS),
    "as it has kept a turn, tail": Case(3, killed_as_it_has_kept_a_segment, 21, 2),
    "while its part starts, head": Case(3, killed_while_parts_start, 3, 0, words=TURNS),
    "while its part starts, middle": Case(3, killed_while_parts_start, 3, 1, words=(*TURNS, *HEADS)),
    "while its part starts, tail": Case(3, killed_while_parts_start, 6, 2, words=TURNS),
    "end to end": Case(3, kill, 38, 1, again=EVERYONE),
    "while all connect": Case(3, killed_while_connecting, 0, 1, again=EVERYONE, words=SOON),
    "another while they connect again": Case(3, killed_and_then_another_while_connecting, 4, 1, EVERYONE, SOON),
}


QUICK = {
    "head, simultaneous",
    "middle, simultaneous",
    "tail, simultaneous",
    "sequential, the learner",
    "between packets, middle",
    "behind heads",
    "another while they meet again",
    "in an evaluation, middle",
    "while saving, head",
    "before it keeps a segment, middle",
    "as it has kept a segment, tail",
    "as it has kept a phase, middle",
    "while its part starts, head",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES])
def test_only_the_lost_process_starts_again(name, undisturbed, tmp_path):  # noqa: F811
    case = CASES[name]
    scene = {"rank": case.rank, "target": case.rank, "step": case.step}
    words = ["--run_dir", str(tmp_path / "run"), *WORDS, *WAITS, *case.words]
    ended = run(case.size, words, tmp_path / "meet", case.fault, comes_back=True, **scene)
    assert (tmp_path / "meet" / "fired").read_text() == str(case.step), "the fault was never there"
    assert ended.codes == [0] * case.size, ended.said
    assert ended.seconds < 50, ended.said
    again = tuple(rank for rank in range(case.size) if (tmp_path / "meet" / f"again-{rank}").exists())
    assert again == (case.again or (case.rank,)), ended.said
    back = [rank for rank in range(case.size) if "is back: goes on from step" in ended.said[rank]]
    assert back == ([] if again == EVERYONE else list(again)), ended.said
    assert_same_bits(undisturbed(case.size, more=case.words), tmp_path / "run")
    assert not list((tmp_path / "run" / "rejoin").iterdir())


def meetings_of_a_turn(init_method, config):
    """Whether a lost process would be waited for, at each meeting of all processes after batches 1 to 5 of 6."""
    found, gather = [], ProcessWorld.gather_bytes

    def noted(world, data):
        if 0 < world.pulse.step < 6:
            found.append(world.pulse.patient)
        return gather(world, data)

    ProcessWorld.gather_bytes = noted
    fit_in(init_method, config)
    return found


def test_a_lost_process_is_waited_for_between_two_segments_of_a_turn_as_well(tmp_path):
    cut = CutConfig("explicit", 3, [1, 4], provisional_prior="flow")
    phases, parallel = [PhaseConfig("simultaneous", steps=6)], ParallelConfig(rejoin_s=60)
    config = small_config(tmp_path / "run", phases, cut=cut, parallel=parallel, eval_every=2 / 125)
    for patient in in_processes(3, meetings_of_a_turn, config, directory=tmp_path / "meet"):
        assert patient and all(patient)


def test_a_process_that_came_back_keeps_what_it_has_computed_itself(tmp_path):
    """On a GPU its bits may be others than those that its life before kept under the same name."""
    config = small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=6)])
    world, at = open_world(config.parallel, config.cut.parts, config.device), ResumePoint(1, 2)
    state = prepare(world, config, None, None, None)
    kept = state.run.directory.rejoin / "rank-0-1-2.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"of another life")
    for _ in range(2):
        keep_snapshot(state, at)
        load_snapshot(state, at)


def test_a_phase_that_ends_again_hands_no_seconds_on(tmp_path, monkeypatch):
    """It ends again, after a while, with a process that was lost meanwhile."""
    end = Pauses.end_phase

    def twice(pauses, number, steps):
        end(pauses, number, steps)
        pauses._state.progress.elapsed["train_seconds"] += 1e6
        end(pauses, number, steps)

    monkeypatch.setattr(Pauses, "end_phase", twice)
    result = fit(small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=2)] * 2))
    assert [phase["train_seconds"] < 1e6 for phase in result["phases"]] == [True, True]


def test_what_another_life_has_kept_is_not_taken_up(undisturbed, tmp_path):  # noqa: F811
    """A stale file under the very name that the lost process would look for must not be found; none is left behind."""
    kept = tmp_path / "run" / "rejoin" / "rank-1-1-0.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"of another cut")
    kept.with_name("rank-7-1-0.safetensors").write_bytes(b"of more processes")
    words = ["--run_dir", str(tmp_path / "run"), *WORDS, *WAITS]
    scene = {"rank": 1, "target": 1, "step": 0}
    ended = run(3, words, tmp_path / "meet", killed_before_it_keeps_a_segment, comes_back=True, **scene)
    assert (tmp_path / "meet" / "fired").exists() and ended.codes == [0, 0, 0], ended.said
    assert "rank-1-1-0.safetensors: No such file" in "".join(ended.said), ended.said  # whoever is the first says it
    assert_same_bits(undisturbed(3), tmp_path / "run")
    assert not list(kept.parent.iterdir())
