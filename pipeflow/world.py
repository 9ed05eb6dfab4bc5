"""The processes: which one holds which part, on what device, and how they reach each other.

`torch.distributed` is global, spells its peers as numbers and fails where it was never initialised. A `World` names the
few things the package needs of it; a world of one process answers the same calls, so nobody else asks "distributed?".
"""

import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from .meeting import meet
from .pulse import EVERYONE, Pulse

T = TypeVar("T")

# Between turns a process may wait for as long as others learn. A dead peer closes its sockets, a stuck one misses its
# heartbeats.
_CONTROL_TIMEOUT = timedelta(days=30)
_START_TIMEOUT = timedelta(minutes=10)
_NO_STORE = "the store where the processes meet is gone"


@dataclass(frozen=True)
class ParallelConfig:
    """How parts are spread over processes.

    Attributes:
        backend: of the links and of DDP; "auto" takes NCCL where every process has a GPU of its own, else gloo.
        depth: packets in flight over a border before the sender waits.
        threads: intra-op threads a part on the CPU; the same however many processes there are.
        replicas: chains of parts side by side; only 1 so far.
        timeout_s: seconds to wait for a packet (or an all-reduce) that is due.
        heartbeat_s: seconds between two signs of life; a process that misses five counts as lost.
    """

    backend: Literal["auto", "gloo", "nccl"] = "auto"
    depth: int = 2
    threads: int = 1
    replicas: int | None = None
    timeout_s: float = 600.0
    heartbeat_s: float = 3.0

    def __post_init__(self) -> None:
        for name in ("depth", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"parallel.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("timeout_s", "heartbeat_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"parallel.{name} is {getattr(self, name)}; it must be positive.")
        if self.replicas not in (None, 1):
            raise ValueError(f"parallel.replicas is {self.replicas}; more than one chain is not supported yet.")


def owners(parts: int, size: int) -> tuple[int, ...]:
    """Which process holds which part: consecutive parts, as even as can be, the first processes one more.

    Args:
        parts: number of parts.
        size: number of processes.

    Raises:
        ValueError: no whole number of chains fits, with the sizes that do.
    """
    if size > parts:
        if size % parts == 0:
            raise ValueError(
                f"{size} processes would be {size // parts} chains of {parts} parts; replicas are not supported yet. "
                f"Start 1 to {parts} processes."
            )
        raise ValueError(
            f"{size} processes do not fit {parts} parts: start 1 to {parts} processes "
            "(a process may hold several consecutive parts)."
        )
    least, more = divmod(parts, size)
    return tuple(rank for rank in range(size) for _ in range(least + (rank < more)))


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto", "cpu" or "cuda" → a device of this machine; a ValueError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device is cuda, but PyTorch sees no CUDA device here; use --device cpu or auto.")
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device(name)


class LostError(ConnectionError):
    """Another process did not answer.

    Args:
        message: what was not done for want of it.
        error: of the transport; its words are kept, its source lines and advice are not.
        rank: of the other process, where it is known.
    """

    def __init__(self, message: str, error: Exception | None = None, rank: int | None = None) -> None:
        words = re.sub(r"\[[^\]]*\.cc:\d+\]\s*|\. This is typically.*", "", " ".join(str(error or "").split()))
        super().__init__(f"{message}: {words}" if words else message)
        self.rank = rank


class World:
    """One process that holds every part.

    Attributes:
        rank, size: of this process, of the world.
        device: where the parts of this process live.
        owner: rank of each part, by position.
        mine: positions of this process's parts, consecutive, from 0.
        pulse: what this process is doing right now.
    """

    rank, size = 0, 1

    def __init__(self, config: ParallelConfig, parts: int, device: str) -> None:
        self.config = config
        self.owner = owners(parts, self.size)
        self.mine = range(self.owner.index(self.rank), self.owner.index(self.rank) + self.owner.count(self.rank))
        self.device = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if config.backend == "nccl" and self.device.type != "cuda":
            raise ValueError("parallel.backend is nccl, but the run is on the CPU (device); use gloo or auto.")
        self.pulse = Pulse()
        self._notes: dict[str, str] = {}
        torch.set_num_threads(config.threads)

    def exchange(self, data: bytes) -> list[bytes]:
        """Everybody's bytes to everybody, by rank. All processes must call it, in the same order."""
        return [data]

    def agree(self, subject: str, mine: str) -> None:
        """A ValueError, in every process, where `mine` is not the same in all of them; all must call it."""
        said = [data.decode() for data in self.exchange(mine.encode())]
        for rank, theirs in enumerate(said):
            if theirs != said[0]:
                raise ValueError(
                    f"The processes disagree about {subject}: rank 0 has {said[0]}, rank {rank} has {theirs}. Start "
                    "every process with the same settings, data and versions."
                )

    def first(self, work: Callable[[], T]) -> T:
        """Rank 0 does the work, then all others do; what is wrong on rank 0 is everyone's error, said once."""
        return work()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes; they must hold equal weights already."""
        return module

    def lost(self, error: Exception) -> bool:
        """Whether an error out of a wrapped module's backward pass says that another process did not answer."""
        return False

    def edge(self, border: int) -> Any:
        """The group of the two processes around a border, counted from 0; None within a process."""
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
        """How messages call a process, this one by default: "part 2 (rank 1)", "parts 1 to 3 (rank 0)"."""
        rank = self.rank if rank is None else rank
        parts = [part + 1 for part, owner in enumerate(self.owner) if owner == rank]
        return f"part {parts[0]} (rank {rank})" if len(parts) == 1 else f"parts {parts[0]} to {parts[-1]} (rank {rank})"

    def close(self) -> None:
        """Leaves the world."""


class ProcessWorld(World):
    """This process among others, as torchrun's environment describes them.

    Args:
        init_method: where to meet: "env://", or "file://…" as in the tests.
    """

    def __init__(self, config: ParallelConfig, parts: int, device: str, init_method: str) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        super().__init__(config, parts, device)
        self.backend = self._choose_backend()
        store, _, _ = next(rendezvous(init_method, self.rank, self.size))
        try:
            store = PrefixStore(meet(store, self.rank, self.size, _START_TIMEOUT), store)
        except (TimeoutError, RuntimeError) as error:
            raise LostError(f"rank {self.rank} did not meet the others", error) from error
        # A connection of its own: notes are also read and left while another call keeps the first one busy.
        self._store = PrefixStore("pipeflow", store.clone())
        dist.init_process_group(
            "gloo",
            store=PrefixStore("control", store),
            rank=self.rank,
            world_size=self.size,
            timeout=_CONTROL_TIMEOUT,
        )
        timeout = timedelta(seconds=config.timeout_s)
        self._everyone = dist.new_group(backend=self.backend, timeout=timeout)
        # A communicator an edge, all of them opened here and in one order: opened on first use they can deadlock.
        self._edges = {
            border: dist.new_group([before, after], backend=self.backend, timeout=timeout)
            for border, (before, after) in enumerate(pairwise(self.owner))
            if before != after
        }
        self.exchange(b"")

    def exchange(self, data: bytes) -> list[bytes]:
        try:
            with self.pulse.waiting(EVERYONE):
                sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
                dist.all_gather(sizes, torch.tensor([len(data)]))
                return [self._broadcast(data, rank, int(size)) for rank, size in enumerate(sizes)]
        except RuntimeError as error:
            raise LostError("the processes no longer meet", error) from error

    def _broadcast(self, data: bytes, source: int, size: int) -> bytes:
        if not size:
            return b""
        buffer = torch.empty(size, dtype=torch.uint8)
        if source == self.rank:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(buffer, source)
        return buffer.numpy().tobytes()

    def first(self, work: Callable[[], T]) -> T:
        done: list[T] = []
        fault = ""
        if self.rank == 0:
            try:
                done.append(work())
            except ValueError as error:
                fault = str(error)
        fault = self.exchange(fault.encode())[0].decode()
        if fault:
            raise ValueError(fault)
        return done[0] if done else work()

    def wrap(self, module: nn.Module) -> nn.Module:
        devices = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Newer versions of PyTorch rename broadcast_buffers; the oldest that we support knows no other name.
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                module, device_ids=devices, process_group=self._everyone, broadcast_buffers=False
            )

    def lost(self, error: Exception) -> bool:
        return isinstance(error, dist.DistError) or bool(re.search(r"gloo/|ncclRemoteError", str(error)))

    def edge(self, border: int) -> Any:
        return self._edges.get(border)

    @property
    def staged(self) -> bool:
        return self.device.type == "cuda" and self.backend == "gloo"

    def note(self, key: str, text: str) -> None:
        try:
            self._store.set(key, text)
        except RuntimeError as error:
            raise LostError(_NO_STORE) from error

    def notes(self, keys: list[str]) -> list[str]:
        try:
            return [self._store.get(key).decode() if self._store.check([key]) else "" for key in keys]
        except RuntimeError as error:
            raise LostError(_NO_STORE) from error

    def claim(self, text: str) -> bool:
        mine = f"{self.rank} {text}"
        try:
            return bool(self._store.compare_set("fault", "", mine).decode() == mine)
        except RuntimeError:  # the store is gone with the process that held it
            return True

    def close(self) -> None:
        dist.destroy_process_group()

    def _choose_backend(self) -> str:
        own_gpu = self.device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= (
            torch.cuda.device_count()
        )
        if self.config.backend == "auto":
            return "nccl" if own_gpu else "gloo"
        if self.config.backend == "nccl" and not own_gpu:
            raise ValueError(
                "parallel.backend is nccl, but not every process has a GPU of its own here; use gloo or auto."
            )
        return self.config.backend


def open_world(config: ParallelConfig, parts: int, device: str, init_method: str = "env://") -> World:
    """The world that the environment describes: torchrun's, or this process alone.

    Args:
        config: how parts are spread.
        parts: number of parts.
        device: "auto", "cpu" or "cuda".
        init_method: where processes meet.

    Raises:
        ValueError: a number of processes that does not fit, a device or backend that is not there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(config, parts, device)
    return ProcessWorld(config, parts, device, init_method)


def leave_the_word_to_rank_0() -> None:
    """Called by a process that found what all processes find: rank 0 says it, the others give it time to.

    torchrun kills all processes as soon as one has failed.
    """
    if int(os.environ.get("RANK", "0")):
        time.sleep(5)
