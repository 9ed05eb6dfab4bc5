"""Runs of the command in real processes, into which a fault is put at a named step.

The processes meet in a store that this process holds, as under torchrun its agent does. No agent ends them: each must
end by itself.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed import TCPStore

from tests.support.processes import CONTEXT

Fault = Callable[["Scene"], None]


class Scene(NamedTuple):
    """Where a fault is put.

    Attributes:
        directory: of the case; holds a file with the process id of each rank, and "fired" once the fault was there.
        rank: the process that meets the fault, or brings it about.
        target: the process that suffers it.
        step: before which batch.
        process: rank of the process that this scene is played in.
    """

    directory: Path
    rank: int
    target: int
    step: int
    process: int = -1

    def fires(self) -> None:
        """Leaves word that the fault was really there."""
        (self.directory / "fired").write_text(str(self.step))

    def pid(self) -> int:
        """Of the target."""
        return int((self.directory / f"pid-{self.target}").read_text())


class Ended(NamedTuple):
    """How a run ended: exit code and output of each rank, seconds from the fault (or the start) to the last end."""

    codes: list[int | None]
    said: list[str]
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines that say why."""
        return [line for text in self.said for line in text.splitlines() if line.startswith("pipeflow: ")]


def run(
    size: int,
    words: list[str],
    directory: Path,
    fault: Fault | None = None,
    comes_back: bool = False,
    loses_the_store: bool = False,
    wakes_up: bool = False,
    **scene: int,
) -> Ended:
    """Starts `pipeflow.train` in `size` processes and waits for all of them to end.

    A process that was stopped (SIGSTOP) gets what torchrun would give it, SIGKILL, when all others have ended.

    Args:
        size: number of processes.
        words: the command line.
        directory: an empty one, for the processes to meet and to write their output to.
        fault: called in every process before it begins, to prepare what happens at the scene.
        comes_back: a process that fails is started again, twice at most, without the fault, as by an agent of its own.
        loses_the_store: the store where the processes meet is gone once the fault was there.
        wakes_up: a process that was stopped will be woken, and is left alone.
        scene: rank, target and step.

    Raises:
        AssertionError: a process hung for two minutes.
    """
    directory.mkdir(parents=True)
    store: TCPStore | None = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert store
    arguments = (size, store.port, words, directory, fault, scene)
    processes = [CONTEXT.Process(target=_enter, args=(rank, *arguments)) for rank in range(size)]
    again: list[int] = []
    began = time.monotonic()
    for process in processes:
        process.start()
    deadline = began + 120
    while time.monotonic() < deadline:
        for rank, process in enumerate(processes):
            if comes_back and again.count(rank) < 2 and process.exitcode not in (None, 0):
                again.append(rank)
                processes[rank] = CONTEXT.Process(target=_enter, args=(rank, *arguments[:3], directory, None, {}))
                processes[rank].start()
        if not (left := [process for process in processes if process.is_alive()]):
            break
        if len(left) == 1 and not wakes_up and state_of(left[0].pid) == "T":
            left[0].kill()
        time.sleep(0.02)
        if not (directory / "fired").exists():
            began = time.monotonic()
        elif loses_the_store:
            store = None
    seconds = time.monotonic() - began
    hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    said = [(directory / f"said-{rank}").read_text() for rank in range(size)]
    assert not hung, f"ranks {hung} hung; they said: {said}"
    return Ended([process.exitcode for process in processes], said, seconds)


def state_of(pid: int | None) -> str:
    """ "T" of a process that is stopped, "Z" of one that has ended and whose parent does not know, "" of none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _enter(
    rank: int, size: int, port: int, words: list[str], directory: Path, fault: Fault | None, scene: dict[str, int]
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    output = os.open(directory / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
    if (directory / f"pid-{rank}").exists():
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
        (directory / f"again-{rank}").touch()
        (directory / f"again-{rank}").touch()
    (directory / f"pid-{rank}").write_text(str(os.getpid()))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    if fault:
        fault(Scene(directory, process=rank, **scene))
    from pipeflow.train import main

    sys.exit(main(words))


# --- faults


def at_the_batch(scene: Scene, act: Callable[[], Any]) -> None:
    """Lets `scene.rank` act before batch `scene.step`."""
    if scene.process != scene.rank:
        return
    from pipeflow.distributed import Stop

    before = Stop.before

    def meets(self: Stop, step: int) -> None:
        if step == scene.step:
            scene.fires()
            act()
        before(self, step)

    Stop.before = meets  # type: ignore[method-assign]


def in_a_call(scene: Scene, owner: Any, name: str, act: Callable[[], Any], step: Callable[..., int]) -> None:
    """Lets `scene.rank` act when it calls `owner.name` and `step` of its arguments is the scene's."""
    if scene.process != scene.rank:
        return
    real = getattr(owner, name)

    def meets(*given: Any, **more: Any) -> Any:
        if step(*given, **more) == scene.step:
            scene.fires()
            act()
        return real(*given, **more)

    setattr(owner, name, meets)


def kill(scene: Scene) -> None:
    """SIGKILL, from the scheduler's memory killer or a person."""
    at_the_batch(scene, lambda: os.kill(scene.pid(), signal.SIGKILL))


def _request(scene: Scene, number: signal.Signals) -> None:
    def act() -> None:
        os.kill(scene.pid(), number)
        time.sleep(0.5)  # or a short run could be over before it is heard

    at_the_batch(scene, act)


def terminate(scene: Scene) -> None:
    """SIGTERM, from a scheduler that wants the node back."""
    _request(scene, signal.SIGTERM)


def user_signal(scene: Scene) -> None:
    """SIGUSR1, as Slurm sends it before the time is up."""
    _request(scene, signal.SIGUSR1)


def freeze(scene: Scene) -> None:
    """SIGSTOP: the process is there and does nothing."""
    at_the_batch(scene, lambda: os.kill(scene.pid(), signal.SIGSTOP))


def hang(scene: Scene) -> None:
    """An endless loop: signs of life go on, work does not."""

    def forever() -> None:
        while True:
            time.sleep(0.1)

    at_the_batch(scene, forever)


def fail(scene: Scene) -> None:
    """An exception that nobody expected."""

    def boom() -> None:
        raise RuntimeError("boom")

    at_the_batch(scene, boom)
