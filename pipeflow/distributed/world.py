"""The processes: which one holds which part, on what device, and how they reach each other.

`torch.distributed` is global, spells its peers as numbers and fails where it was never initialised. A `World` names the
few things the package needs of it; a world of one process answers the same calls, so nobody else asks "distributed?".
"""

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from torch import nn
from tqdm import tqdm

from ..errors import NoReturnError
from .device import choose_device
from .grid import grid
from .heartbeat import Pulse
from .settings import ParallelConfig

T = TypeVar("T")


class World:
    """One process that holds every part.

    Attributes:
        rank, size: of this process, of the world.
        grid: chains of processes side by side.
        replica: number of this process's chain, from 0.
        device: where the parts of this process live.
        owner: rank of each part of this process's chain, by position.
        mine: positions of this process's parts, consecutive, from 0.
        pulse: what this process is doing right now.
        standing: where the others wait for this process, which they have lost; empty where all began together.
    """

    rank, size = 0, 1
    standing = ""

    def __init__(self, config: ParallelConfig, parts: int, device: str) -> None:
        self.config = config
        self.grid = grid(parts, self.size, config.replicas)
        self.replica = self.grid.replica(self.rank)
        self.owner, self.mine = self.grid.owner(self.replica), self.grid.held(self.rank)
        self.device = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if config.rejoin_s and self.grid.replicas > 1:
            raise ValueError(
                f"parallel.rejoin_s is {config.rejoin_s}, but there are {self.grid.replicas} replicas, which wait for "
                "each other in every update; a process can come back into a single chain only. Leave it out."
            )
        if config.backend == "nccl" and self.device.type != "cuda":
            raise ValueError("parallel.backend is nccl, but the run is on the CPU (device); use gloo or auto.")
        self.pulse = Pulse()
        self._notes: dict[str, str] = {}

    def exchange(self, data: bytes) -> list[bytes]:
        """Everybody's bytes to everybody, by rank. All processes must call it, in the same order."""
        return [data]

    def agree(self, subject: str, mine: str, by_chain: bool = False) -> None:
        """A ValueError, in every process, where `mine` is not the same in all of them, or all of a chain.

        All must call it.
        """
        said = [data.decode() for data in self.exchange(mine.encode())]
        for rank, theirs in enumerate(said):
            first = self.grid.chain(self.grid.replica(rank))[0] if by_chain else 0
            if theirs != said[first]:
                raise ValueError(
                    f"The processes disagree about {subject}: rank {first} has {said[first]}, rank {rank} has {theirs}."
                    " Start every process with the same settings, data and versions."
                )

    def first(self, work: Callable[[], T]) -> T:
        """Rank 0 does the work, then all others do; what is wrong on rank 0 is everyone's error, said once."""
        return work()

    def rejoin(self, standing: str) -> None:
        """Leaves the others, one of whom is lost, and meets them again with the one that takes its place.

        Args:
            standing: where this process waits; must be the same in all that do.

        Raises:
            NoReturnError: nobody took its place in time, or the others stand elsewhere.
            LostError: another process was lost while they met.
        """
        raise NoReturnError("there is no other process")

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes; they must hold equal weights already."""
        return module

    def shard(self, module: nn.Module, units: Iterable[nn.Module]) -> None:
        """Spreads the module's parameters over all processes, which must hold equal ones, and moves it to the device.

        Args:
            module: afterwards its forward and backward passes gather what they need, unit by unit.
            units: modules in it, none inside another; what is in none of them is gathered at once.
        """
        module.to(self.device)

    def wrap_part(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the replicas of this process's parts."""
        return module

    def equalise(self, module: nn.Module) -> None:
        """Gives all replicas of a module the weights and buffers of the first."""

    def lost(self, error: Exception) -> bool:
        """Whether an error out of a wrapped module's backward pass says that another process did not answer."""
        return False

    def edge(self, border: int) -> Any:
        """The group of the two processes around a border of this chain, counted from 0; None within a process."""
        return None

    def group(self, who: Literal["everyone", "chain", "peers"]) -> Any:
        """The group of all processes, of this chain's, or of those that hold the same parts; None for one alone."""
        return None

    @property
    def staged(self) -> bool:
        """Whether packets of a GPU have to travel through host memory."""
        return False

    def note(self, key: str, text: str) -> None:
        """Leaves a short note that every process can read at any time."""
        self._notes[key] = text

    def notes(self, keys: list[str]) -> list[str]:
        """The latest notes under `keys`, empty where there was none yet."""
        return [self._notes.get(key, "") for key in keys]

    def claim(self, text: str) -> bool:
        """True for the one process that is the first to say what ended the run."""
        return True

    def place(self, rank: int | None = None) -> str:
        """How messages call a process, this one by default: "part 2 (rank 1)"."""
        return self.grid.place(self.rank if rank is None else rank)

    def close(self) -> None:
        """Leaves the world."""


def say(world: World, text: str) -> None:
    """Prints for the whole run: once, by the first process."""
    if world.rank == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
