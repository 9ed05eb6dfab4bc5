"""This process among others, over `torch.distributed`."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ..errors import NoReturnError
from .device import choose_backend
from .heartbeat import EVERYONE
from .key_value import KeyValueStore
from .process_groups import ProcessGroups, open_control_group
from .rendezvous import meet
from .settings import ParallelConfig
from .transport_errors import lost_error, others_answer
from .world import Members, ResumePoint, World

_START_TIMEOUT = timedelta(minutes=10)


class ProcessWorld(World):
    """This process among others, as torchrun's environment describes them.

    Args:
        init_method: where to meet: "env://", or "file://…" as in the tests.
    """

    def __init__(self, config: ParallelConfig, parts: int, device: str, init_method: str) -> None:
        super().__init__(config, parts, device, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        self.backend = "gloo"
        self._base, _, _ = next(rendezvous(init_method, self.rank, self.size))
        self._store_name = ""
        self._groups: ProcessGroups | None = None
        self.resume_point = self._meet(None, _START_TIMEOUT)
        if self.resume_point:
            self.pulse.patient = True
            self.store.withdraw_claim()  # it was this process's end

    def _meet(self, waits_at: ResumePoint | None, timeout: timedelta) -> ResumePoint | None:
        """Meets the others and opens the groups; returns where those wait that were here before, if any was."""
        try:
            name = meet(self._base, self.rank, self.size, timeout)
        except (TimeoutError, RuntimeError) as error:
            raise lost_error(f"rank {self.rank} did not meet the others", error, kind=NoReturnError) from error
        store = PrefixStore("control", PrefixStore(name, self._base))
        try:
            open_control_group(self.rank, self.size, store, self.config)
        except RuntimeError as error:  # PyTorch has counted the group, and would call the next one by another name
            raise lost_error("the processes could not connect", error, kind=NoReturnError) from error
        try:
            self.backend = self._agree_on_backend()
            self._groups = ProcessGroups(self, self.config, self.backend)
        except RuntimeError as error:
            raise lost_error("the processes could not connect", error) from error
        everyone = self.gather([self._store_name, waits_at])
        before = [(store_name, ResumePoint(*point)) for store_name, point in everyone if store_name]
        if not self._store_name:
            self._store_name = before[0][0] if before else name
            # A connection of its own: values are also read and set while another call keeps the first one busy.
            store = PrefixStore(f"notes/{self._store_name}", self._base.clone())
            self.store = KeyValueStore(store, self.rank)
        # Where a segment ends (Recovery.keep), one may have left the meeting and another not: all have kept the later.
        return max((point for _, point in before), default=None)

    def _agree_on_backend(self) -> str:
        """The backend of all processes: a host without a GPU for each of its own would else open groups alone.

        Raises:
            ValueError: in every process, if they were told different ones, or one of them cannot do as it was told.
        """
        self.agree("parallel.backend", self.config.backend)
        choices = self.gather(self.everywhere(lambda: choose_backend(self.config, self.device)))
        return "gloo" if "gloo" in choices else str(choices[0])

    def rejoin(self, waits_at: ResumePoint) -> None:
        self.close()
        self.pulse.waits_for = None  # the error left it set, and whoever waits is never said to hang
        with self.pulse.waiting(EVERYONE):
            point = self._meet(waits_at, timedelta(seconds=self.config.rejoin_s))
        self.resume_point = point if point != waits_at else None
        self.store.withdraw_claim()

    def gather_bytes(self, data: bytes) -> list[bytes]:
        try:
            with self.pulse.waiting(EVERYONE):
                sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
                dist.all_gather(sizes, torch.tensor([len(data)]))
                return [self._bytes_of(rank, data, int(size)) for rank, size in enumerate(sizes)]
        except RuntimeError as error:
            raise lost_error("the processes no longer meet", error) from error

    def _bytes_of(self, source: int, data: bytes, size: int) -> bytes:
        if not size:
            return b""
        buffer = torch.empty(size, dtype=torch.uint8)
        if source == self.rank:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(buffer, source)
        return buffer.numpy().tobytes()

    def edge(self, rank: int) -> Any:
        return self._groups.edge(rank) if self._groups else None

    def group(self, members: Members) -> Any:
        if self._groups is None:
            return None
        with others_answer(self.pulse, "the processes could not connect"):
            return self._groups.of(members)

    @property
    def staged(self) -> bool:
        return self.device.type == "cuda" and self.backend == "gloo"

    def close(self) -> None:
        self._groups = None  # a group's sockets close when nobody refers to it any more, links included
        if dist.is_initialized():
            dist.destroy_process_group()


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
