"""This process among others, over `torch.distributed`."""

import gc
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous

from ..errors import LostError, NoReturnError
from .heartbeat import EVERYONE
from .rendezvous import meet
from .settings import ParallelConfig
from .world import T, World

# Between turns a process may wait for as long as others learn. A dead peer closes its sockets, a stuck one misses its
# heartbeats.
_CONTROL_TIMEOUT = timedelta(days=30)
_START_TIMEOUT = timedelta(minutes=10)
_NO_STORE = "the store where the processes meet is gone"


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
