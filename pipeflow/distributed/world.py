"""The processes of a run: which one holds which part, on what device, and what they can do together.

`torch.distributed` is global, spells its peers as numbers and fails where it was never initialised. A `World` names the
few things the package needs of it; a world of one process answers the same calls, so nobody else asks "distributed?".
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from tqdm import tqdm

from ..errors import NoReturnError
from .device import choose_device
from .grid import Topology, grid
from .heartbeat import Pulse
from .key_value import KeyValueStore
from .settings import ParallelConfig

T = TypeVar("T")
Members = Literal["everyone", "chain", "replicas"]
"""All processes, those of this chain, or those that hold the same parts as this process."""


class ResumePoint(NamedTuple):
    """The beginning of a segment of training, where processes wait for one that they have lost."""

    phase: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step} of phase {self.phase}"


class World(Topology):
    """One process that holds every part.

    Attributes:
        config: how parts are spread.
        device: where the parts of this process live.
        pulse: what this process is doing right now.
        store: short values that every process can set and read at any time.
        resume_point: where the others wait for this process, which they have lost, or which has not seen that all have
            reached this point; None otherwise.
    """

    resume_point: ResumePoint | None = None

    def __init__(self, config: ParallelConfig, parts: int, device: str, rank: int = 0, size: int = 1) -> None:
        super().__init__(grid(parts, size, config.replicas), rank)
        self.config = config
        self.device = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if config.rejoin_s and size > self.grid.stages:
            replicas = list(self.grid.sharers) or self.grid.replicas
            raise ValueError(
                f"parallel.rejoin_s is {config.rejoin_s}, but there are {replicas} replicas, which wait for each other "
                "in every update; a process can come back into a single chain only. Leave it out."
            )
        if config.backend == "nccl" and self.device.type != "cuda":
            raise ValueError("parallel.backend is nccl, but the run is on the CPU (device); use gloo or auto.")
        self.pulse = Pulse()
        self.store = KeyValueStore()

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Everybody's bytes to everybody, by rank. All processes must call it, in the same order.

        Raises:
            LostError: from here and from every method that builds on it, where another process did not answer.
        """
        return [data]

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value to everybody, by rank; a value is what JSON can hold, and comes back as JSON reads it."""
        everyone = self.gather_bytes(b"" if value is None else json.dumps(value).encode())
        return [json.loads(data) if data else None for data in everyone]

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, in every process; those of the others are ignored."""
        return self.gather(value if self.rank == 0 else None)[0]

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.gather_bytes(b"")

    def agree(self, subject: str, value: str, by_chain: bool = False) -> None:
        """A ValueError, in every process, where `value` is not the same in all of them, or all of a chain."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            first = self.grid.chain(self.grid.replica(rank))[0] if by_chain else 0
            if other != values[first]:
                raise ValueError(
                    f"The processes disagree about {subject}: rank {first} has {values[first]}, rank {rank} has "
                    f"{other}. Start every process with the same settings, data and versions."
                )

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """Rank 0 does the work; every process gets what it returns, a value that JSON can hold.

        Raises:
            ValueError: in every process, with the message of the one that the work has raised.
        """
        answer: dict[str, Any] = {}
        cause = None
        if self.rank == 0:
            try:
                answer["value"] = work()
            except ValueError as error:
                cause, answer["error"] = error, str(error)
        answer = self.broadcast(answer)
        if "error" in answer:
            raise cause or ValueError(answer["error"])
        value: T = answer["value"]
        return value

    def rank_0_first(self, work: Callable[[], T]) -> T:
        """Every process does the work, the others after rank 0: it may have to download what the others then read.

        Raises:
            ValueError: what the work raises in rank 0, in every process.
        """
        done: list[T] = []
        self.on_rank_0(lambda: done.append(work()))
        return done[0] if done else work()

    def everywhere(self, work: Callable[[], T]) -> T:
        """Every process does its own work.

        Raises:
            ValueError: what the work has raised in one process, in all of them.
        """
        done: list[T] = []
        fault = ""
        try:
            done.append(work())
        except ValueError as error:
            fault = str(error)
        if faults := [sentence for sentence in self.gather(fault) if sentence]:
            raise ValueError(faults[0])
        return done[0]

    def rejoin(self, waits_at: ResumePoint) -> None:
        """Leaves the others, one of whom is lost, and meets them again with the one that takes its place.

        Args:
            waits_at: where this process waits. If others are further already, `resume_point` says where.

        Raises:
            NoReturnError: nobody took its place in time.
            LostError: another process was lost while they met.
        """
        raise NoReturnError("there is no other process")

    def edge(self, rank: int) -> Any:
        """The group of this process and a neighbour in its chain; None of other processes."""
        return None

    def group(self, members: Members) -> Any:
        """A group of `torch.distributed`; None in a world of one process, and of replicas where there is one.

        "everyone" and "chain" are opened when first asked for: all processes must then do so at the same point.
        """
        return None

    @property
    def staged(self) -> bool:
        """Whether packets of a GPU have to travel through host memory."""
        return False

    def close(self) -> None:
        """Leaves the world."""


def say(world: World, text: str) -> None:
    """Prints for the whole run: once, by the first process."""
    if world.rank == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
