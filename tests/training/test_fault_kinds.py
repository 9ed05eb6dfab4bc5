"""The kinds of faults that injectors of the field know: each ends the run with one sentence, or changes no bit of it.

test_faults.py puts a few kinds of faults everywhere; here are the many kinds, each where it differs from the others.
"""

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pipeflow.storage import checkpoint
from tests.support.fault_injection import Fault, Scene, at_the_batch, in_a_call, run
from tests.training.test_faults import SMALL, assert_same_bits

# Steps 1-10 by parts and 11-16 end to end; checkpoints and evaluations every 4.
PHASES = [{"schedule": "simultaneous", "steps": 10}, {"schedule": "end_to_end", "steps": 6}]
HEARTBEAT_S, TIMEOUT_S, STEPS = 0.5, 6.0, 16
WORDS = [
    *(*SMALL, "--phases", json.dumps(PHASES), "--checkpoint.every", "4", "--eval_every", str(4 / 125)),
    *("--parallel.heartbeat_s", str(HEARTBEAT_S), "--parallel.timeout_s", str(TIMEOUT_S)),
]
LONG_S = 12 * HEARTBEAT_S  # five heartbeats may be missed
# Where nobody may be suspected a busy machine must have time: a moment is two heartbeats of the five.
PATIENT_HEARTBEAT_S = 2.0
PATIENT = ("--parallel.heartbeat_s", str(PATIENT_HEARTBEAT_S), "--parallel.timeout_s", "60")
BRIEF_S = 2 * PATIENT_HEARTBEAT_S


class InjectedError(Exception):
    """Raised from another thread."""


def asynchronous_exception(scene: Scene) -> None:
    """What `PyThreadState_SetAsyncExc` does: an exception at whatever instruction comes next."""
    raised = ctypes.py_object(InjectedError)
    at_the_batch(
        scene, lambda: ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.main_thread().ident), raised)
    )


def send(number: signal.Signals, ranks: tuple[int, ...], scene: Scene) -> None:
    """A signal from outside, to some ranks and then to the target."""

    def act() -> None:
        for rank in (*ranks, scene.target):
            os.kill(scene._replace(target=rank).pid(), number)

    at_the_batch(scene, act)


def aborts(scene: Scene) -> None:
    """What a failed assertion of C++ does."""
    at_the_batch(scene, os.abort)


def out_of_memory(scene: Scene) -> None:
    """The address space may not grow any more, and then it has to."""

    def act() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, resource.RLIM_INFINITY))
        torch.zeros(2**28)

    at_the_batch(scene, act)


def from_outside(command: str) -> None:
    """Starts a shell that outlives a stop of this process, whose id it finds in $0."""
    subprocess.Popen(["sh", "-c", command, str(os.getpid())])


def stop_for(seconds: float, scene: Scene) -> None:
    """SIGSTOP, and SIGCONT some time later."""

    def act() -> None:
        from_outside(f"sleep {seconds}; kill -CONT $0")
        os.kill(os.getpid(), signal.SIGSTOP)

    at_the_batch(scene, act)


def hold_the_lock_of_python_for(seconds: float, scene: Scene) -> None:
    """No other thread of the process runs meanwhile, that of its heartbeats neither."""
    at_the_batch(scene, lambda: ctypes.PyDLL(None).usleep(int(seconds * 1e6)))


def a_tenth_of_the_speed(scene: Scene) -> None:
    """The process and all its threads run for 100 ms in a second, nine times."""
    slow = "for i in 1 2 3 4 5 6 7 8 9; do kill -STOP $0; sleep 0.9; kill -CONT $0; sleep 0.1; done"
    at_the_batch(scene, lambda: from_outside(slow))


def clock_jumps(scene: Scene) -> None:
    """A day ahead, and a day back."""

    def act() -> None:
        now, sign = time.time, [1]

        def jumping() -> float:
            sign[0] = -sign[0]
            return now() + sign[0] * 86_400

        time.time = jumping

    at_the_batch(scene, act)


def in_evaluation(act: Callable[[], Any], scene: Scene) -> None:
    import pipeflow.training.pauses as pauses

    in_a_call(scene, pauses, "evaluate", act, lambda chain, *_: chain.world.pulse.step)


def in_saving(act: Callable[[], Any], scene: Scene) -> None:
    in_a_call(scene, checkpoint, "write_part", act, lambda partial, *_: int(re.findall(r"\d+", partial.name)[0]))


def in_joining(act: Callable[[], Any], scene: Scene) -> None:
    import pipeflow.training.modes as modes

    in_a_call(scene, modes, "join", act, lambda state: state.progress.step)


def boom() -> None:
    raise RuntimeError("boom")


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


class Ends(NamedTuple):
    """A fault that ends the run: exit codes by rank, and a pattern of the one line."""

    fault: Fault
    step: int
    rank: int
    codes: tuple[int, ...]
    says: str
    words: tuple[str, ...] = ()


class Lives(NamedTuple):
    """A fault that a run gets over."""

    fault: Fault
    step: int
    rank: int


PIPELINE = ("--end_to_end.engine", "pipeline")


def gone(rank: int) -> str:
    return rf"part {rank + 1} \(rank {rank}\), .*step \d+: "


INJECTED, BOOM, FULL = "InjectedError$", ".*boom$", "there is not enough memory"
KILL, INT, SEGV = signal.SIGKILL, signal.SIGINT, signal.SIGSEGV
CASES = {
    "asynchronous exception, middle": Ends(asynchronous_exception, 6, 1, (1, 1, 1), gone(1) + INJECTED),
    "asynchronous exception, end to end, last": Ends(asynchronous_exception, 14, 2, (1, 1, 1), gone(2) + INJECTED),
    "exception while evaluating, tail": Ends(partial(in_evaluation, boom), 4, 2, (1, 1, 1), gone(2) + BOOM),
    "exception while saving, middle": Ends(partial(in_saving, boom), 4, 1, (1, 1, 1), gone(1) + BOOM),
    "SIGINT, tail": Ends(partial(send, INT, ()), 6, 2, (1, 1, 130), gone(2) + "interrupted"),
    "SIGINT to all": Ends(partial(send, INT, (0, 2)), 6, 1, (130, 130, 130), r"part \d \(rank \d\), .*: interrupted"),
    "SIGSEGV, head": Ends(partial(send, SEGV, ()), 6, 0, (-11, 1, 1), gone(0)),
    "SIGSEGV at the switch, middle": Ends(partial(in_joining, segfault), 10, 1, (1, -11, 1), gone(1)),
    "SIGSEGV, a pipeline's last": Ends(partial(send, SEGV, ()), 14, 2, (1, 1, -11), gone(2), PIPELINE),
    "abort, end to end, first": Ends(aborts, 14, 0, (-6, 1, 1), gone(0)),
    "two at once": Ends(partial(send, KILL, (1,)), 6, 2, (1, -9, -9), r"part [23] \(rank [12]\), .*step \d+: "),
    "out of memory, middle": Ends(out_of_memory, 6, 1, (1, 1, 1), gone(1) + FULL),
    "stopped for long, middle": Ends(partial(stop_for, LONG_S), 6, 1, (1, 1, 1), gone(1)),
    "a held GIL for long, head": Ends(partial(hold_the_lock_of_python_for, LONG_S), 6, 0, (1, 1, 1), gone(0)),
}
LIVES = {
    "stopped for a moment, middle": Lives(partial(stop_for, BRIEF_S), 6, 1),
    "stopped for a moment, end to end": Lives(partial(stop_for, BRIEF_S), 14, 0),
    "a held GIL for a moment, tail": Lives(partial(hold_the_lock_of_python_for, BRIEF_S), 6, 2),
    "a tenth of the speed, middle": Lives(a_tenth_of_the_speed, 3, 1),
    "the clock jumps, first": Lives(clock_jumps, 3, 0),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """words → the run directory of a run that nothing disturbed."""
    runs: dict[tuple[str, ...], Path] = {}

    def of(*words: str) -> Path:
        if words not in runs:
            directory = tmp_path_factory.mktemp("undisturbed")
            ended = run(3, ["--run_dir", str(directory / "run"), *WORDS, *words], directory / "meet")
            assert ended.codes == [0, 0, 0], ended.said
            runs[words] = directory / "run"
        return runs[words]

    return of


@pytest.mark.parametrize("name", CASES)
def test_a_fault_ends_the_run_with_one_sentence_and_it_goes_on(name, undisturbed, tmp_path):
    case, directory = CASES[name], tmp_path / "run"
    words = ["--run_dir", str(directory), *WORDS, *case.words]
    scene = {"rank": case.rank, "target": case.rank, "step": case.step}
    ended = run(3, words, tmp_path / "first", case.fault, wakes_up=True, **scene)
    assert (tmp_path / "first" / "fired").read_text() == str(case.step), "the fault was never there"
    assert tuple(ended.codes) == case.codes, (ended.codes, ended.said)
    assert ended.seconds < 60
    (line,) = ended.lines
    assert re.match(rf"pipeflow: {case.says}", line), line
    if "xception" not in name:
        assert not any("Traceback" in text for text in ended.said), ended.said
    resumed = run(3, ["--run_dir", str(directory), "--resume", "auto"], tmp_path / "second")
    assert resumed.codes == [0, 0, 0], resumed.said
    assert_same_bits(undisturbed(*case.words), directory, STEPS)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * ("speed" in name)) for name in LIVES])
def test_what_is_slow_or_away_for_a_moment_is_not_taken_for_dead(name, undisturbed, tmp_path):
    case = LIVES[name]
    words = ["--run_dir", str(tmp_path / "run"), *WORDS, *PATIENT]
    scene = {"rank": case.rank, "target": case.rank, "step": case.step}
    ended = run(3, words, tmp_path / "meet", case.fault, wakes_up=True, **scene)
    assert (tmp_path / "meet" / "fired").exists() and ended.codes == [0, 0, 0], ended.said
    assert ended.lines == []
    assert_same_bits(undisturbed(), tmp_path / "run", STEPS)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fills_the_disk(scene: Scene) -> None:
    """Somebody else takes what is left of it."""

    def act() -> None:
        with (scene.directory.with_name("disk") / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(bytes(4096)):
                pass

    at_the_batch(scene, act)


@pytest.mark.parametrize("step", [6, 14], ids=["by parts", "end to end"])
def test_a_full_disk_ends_the_run_with_one_sentence_and_it_goes_on(step, undisturbed, small_disk, tmp_path):
    directory = small_disk / "run"
    words = ["--run_dir", str(directory), *WORDS]
    ended = run(3, words, tmp_path / "first", fills_the_disk, rank=1, target=1, step=step)
    assert (tmp_path / "first" / "fired").exists() and ended.codes == [1, 1, 1], ended.said
    (line,) = ended.lines
    assert "No space left on device" in line and not any("Traceback" in text for text in ended.said), ended.said
    (small_disk / "filler").unlink()
    resumed = run(3, ["--run_dir", str(directory), "--resume", "auto"], tmp_path / "second")
    assert resumed.codes == [0, 0, 0], resumed.said
    assert_same_bits(undisturbed(), directory, STEPS)


def nothing(scene: Scene) -> None:
    """What is lost is outside of the processes."""
    at_the_batch(scene, lambda: None)


@pytest.mark.parametrize("step", [6, 14], ids=["by parts", "end to end"])
def test_without_the_store_every_process_ends_and_says_so_itself(step, undisturbed, tmp_path):
    """As under torchrun whose agent is killed, or whose host is lost."""
    words = ["--run_dir", str(tmp_path / "run"), *WORDS]
    ended = run(3, words, tmp_path / "first", nothing, loses_the_store=True, rank=1, target=1, step=step)
    assert (tmp_path / "first" / "fired").exists() and ended.codes == [1, 1, 1], ended.said
    assert all(text.count("pipeflow: ") == 1 and "Traceback" not in text for text in ended.said), ended.said
    assert any("the store where the processes meet is gone" in line for line in ended.lines), ended.said
    resumed = run(3, ["--run_dir", str(tmp_path / "run"), "--resume", "auto"], tmp_path / "second")
    assert resumed.codes == [0, 0, 0], resumed.said
    assert_same_bits(undisturbed(), tmp_path / "run", STEPS)


def killed_as_it_resumes(scene: Scene) -> None:
    import pipeflow.training.prepare as prepare

    in_a_call(scene, prepare, "restore", lambda: os.kill(os.getpid(), KILL), lambda *_: scene.step)


def test_a_fault_while_going_on_after_a_fault(undisturbed, tmp_path):
    directory = tmp_path / "run"
    scene = {"rank": 1, "target": 1, "step": 6}
    for name, fault in (("first", partial(send, KILL, ())), ("second", killed_as_it_resumes)):
        words = ["--run_dir", str(directory), *WORDS, "--resume", "auto"]
        ended = run(3, words, tmp_path / name, fault, **scene)
        assert (tmp_path / name / "fired").exists() and ended.codes == [1, -9, 1], ended.said
        (line,) = ended.lines
        assert re.match(rf"pipeflow: {gone(1)}", line), line
    ended = run(3, ["--run_dir", str(directory), "--resume", "auto"], tmp_path / "third")
    assert ended.codes == [0, 0, 0], ended.said
    assert_same_bits(undisturbed(), directory, STEPS)
