"""The processes: which one holds which part, on what device, and how they reach each other.

`torch.distributed` is global, spells its peers as numbers and fails where it was never initialised. A `World` names the
few things the package needs of it; a world of one process answers the same calls, so nobody else asks "distributed?".
"""

import gc
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from .grid import grid
from .heap import keep_memory
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
        replicas: chains of parts side by side, each on its own share of every batch; None takes as many as the
            processes make.
        timeout_s: seconds to wait for a packet (or an all-reduce) that is due.
        heartbeat_s: seconds between two signs of life; a process that misses five counts as lost.
        rejoin_s: seconds that the others wait, while training by parts, for a lost process to come back; 0 ends the
            run.
        wire: how a latent crosses a border while training by parts: "bf16" rounds it and halves the bytes; what is
            evaluated, sampled or trained end to end is never rounded.
    """

    backend: Literal["auto", "gloo", "nccl"] = "auto"
    depth: int = 2
    threads: int = 1
    replicas: int | None = None
    timeout_s: float = 600.0
    heartbeat_s: float = 3.0
    rejoin_s: float = 0.0
    wire: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("depth", "threads", "replicas"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"parallel.{name} is {value}; it must be at least 1.")
        for name in ("timeout_s", "heartbeat_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"parallel.{name} is {getattr(self, name)}; it must be positive.")
        if not self.rejoin_s >= 0:
            raise ValueError(f"parallel.rejoin_s is {self.rejoin_s}; it must not be negative.")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that `World.shard` has spread, put together again: all processes must call it. Others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor that `World.shard` has spread, sharing its storage; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a tensor that every process holds, where `like` is and spread as it is."""
    if isinstance(like, DTensor):
        copy = tensor.to(like.device, copy=True)
        return distribute_tensor(copy, like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device, copy=True)


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


class NoReturnError(LostError):
    """Another process did not answer, and the others will not meet again."""


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
        torch.set_num_threads(config.threads)
        if self.device.type == "cpu":
            keep_memory()

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


class ProcessWorld(World):
    """This process among others, as torchrun's environment describes them.

    Args:
        init_method: where to meet: "env://", or "file://…" as in the tests.
    """

    def __init__(self, config: ParallelConfig, parts: int, device: str, init_method: str) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        super().__init__(config, parts, device)
        self.backend = self._choose_backend()
        self._base, _, _ = next(rendezvous(init_method, self.rank, self.size))
        self._notes_of = ""
        self.standing = self._gather("", _START_TIMEOUT)
        if self.standing:
            self.pulse.patient = True
            self.note("fault", "")  # it was this process's end

    def _gather(self, standing: str, timeout: timedelta) -> str:
        """Meets the others, opens the groups, and hears where those stand that were here before; empty if none was."""
        try:
            name = meet(self._base, self.rank, self.size, timeout)
        except (TimeoutError, RuntimeError) as error:
            raise NoReturnError(f"rank {self.rank} did not meet the others", error) from error
        try:
            self._open_groups(PrefixStore("control", PrefixStore(name, self._base)))
        except RuntimeError as error:
            raise LostError("the processes could not connect", error) from error
        said = [json.loads(data) for data in self.exchange(json.dumps([self._notes_of, standing]).encode())]
        before = [(notes, where) for notes, where in said if notes]
        if not self._notes_of:
            self._notes_of = before[0][0] if before else name
            # A connection of its own: notes are also read and left while another call keeps the first one busy.
            self._store = PrefixStore(f"notes/{self._notes_of}", self._base.clone())
        if len(set(before)) > 1:
            places = sorted({where for _, where in before})
            raise NoReturnError(f"the processes cannot go on together: they stand at {' and '.join(places)}")
        return before[0][1] if before else ""

    def _open_groups(self, store: PrefixStore) -> None:
        """Every group of the grid, opened here and in one order by all: opened on first use they can deadlock."""
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=_CONTROL_TIMEOUT)
        self._everyone = self._group([list(range(self.size))])
        chains = [self.grid.chain(replica) for replica in range(self.grid.replicas)]
        chain, peers = self._group(chains), self._group([self.grid.peers(stage) for stage in range(self.grid.stages)])
        self.mesh = DeviceMesh.from_group(
            [peers, chain], self.device.type, mesh=torch.tensor(chains), mesh_dim_names=("replica", "stage")
        )
        # A communicator an edge.
        self._edges = {
            border: self._group(
                [[owner[border], owner[border + 1]] for owner in map(self.grid.owner, range(len(chains)))]
            )
            for border, (before, after) in enumerate(pairwise(self.owner))
            if before != after
        }

    def rejoin(self, standing: str) -> None:
        for groups in ("_everyone", "_edges", "mesh"):
            self.__dict__.pop(groups, None)
        if dist.is_initialized():
            dist.destroy_process_group()
        gc.collect()  # a group's sockets close with its last reference
        with self.pulse.waiting(EVERYONE):
            self._gather(standing, timedelta(seconds=self.config.rejoin_s))
        self.note("fault", "")

    def _group(self, groups: list[list[int]]) -> Any:
        """Opens groups of ranks; returns the one that this process is in, or None. Every process must call it."""
        timeout = timedelta(seconds=self.config.timeout_s)
        made = [dist.new_group(ranks, backend=self.backend, timeout=timeout) for ranks in groups]
        return next((group for ranks, group in zip(groups, made, strict=True) if self.rank in ranks), None)

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
        return self._averaged(module, self._everyone)

    def shard(self, module: nn.Module, units: Iterable[nn.Module]) -> None:
        mesh = DeviceMesh.from_group(self._everyone, self.device.type)
        for each in [*units, module]:
            # By default the root's own parameters stay gathered behind a forward pass, and an optimizer made then would
            # hold tensors whose memory is given back.
            fully_shard(each, mesh=mesh, reshard_after_forward=True)

    def wrap_part(self, module: nn.Module) -> nn.Module:
        return self._averaged(module, self.mesh.get_group("replica")) if self.grid.replicas > 1 else module

    def _averaged(self, module: nn.Module, group: Any) -> nn.Module:
        devices = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Newer versions of PyTorch rename broadcast_buffers; the oldest that we support knows no other name.
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                module, device_ids=devices, process_group=group, broadcast_buffers=False
            )

    def equalise(self, module: nn.Module) -> None:
        if self.grid.replicas == 1:
            return
        group = self.mesh.get_group("replica")
        try:
            with self.pulse.waiting(EVERYONE):
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, group=group, group_src=0)
        except RuntimeError as error:
            raise LostError("the replicas did not start from equal weights", error) from error

    def lost(self, error: Exception) -> bool:
        return isinstance(error, dist.DistError) or bool(re.search(r"gloo/|ncclRemoteError", str(error)))

    def edge(self, border: int) -> Any:
        return self._edges.get(border)

    def group(self, who: Literal["everyone", "chain", "peers"]) -> Any:
        return self._everyone if who == "everyone" else self.mesh.get_group({"chain": "stage", "peers": "replica"}[who])

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
        if self.config.rejoin_s and self.config.backend == "nccl":
            raise ValueError(
                "parallel.rejoin_s needs links that can be opened again, which is built for gloo only; set "
                "parallel.backend to gloo or auto."
            )
        if self.config.backend == "auto":
            return "nccl" if own_gpu and not self.config.rejoin_s else "gloo"
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

    torchrun kills all processes of a host as soon as one of them has failed; so another host says it once as well.
    """
    time.sleep(sum(5 for name in ("RANK", "LOCAL_RANK") if int(os.environ.get(name, "0"))))
