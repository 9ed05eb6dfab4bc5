"""The groups of `torch.distributed` that a grid of processes needs."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from .grid import Topology
from .settings import ParallelConfig
from .world import Members

# Between turns a process may wait for as long as others learn. A dead peer closes its sockets, a stuck one misses its
# heartbeats.
_CONTROL_TIMEOUT = timedelta(days=30)


class ProcessGroups:
    """The groups that a process is in, and one for control messages, the default group.

    All of them are opened here, in one order by all processes: opened on first use they can deadlock.

    Args:
        here: this process among the others.
        config: for the time-out.
        backend: "gloo" or "nccl"; control messages use gloo always.
        store: where the processes tell each other their addresses.
    """

    def __init__(self, here: Topology, config: ParallelConfig, backend: str, store: Store) -> None:
        self._rank, self._backend, self._timeout = here.rank, backend, timedelta(seconds=config.timeout_s)
        dist.init_process_group("gloo", store=store, rank=here.rank, world_size=here.size, timeout=_CONTROL_TIMEOUT)
        chains = [here.grid.chain(replica) for replica in range(here.grid.replicas)]
        self._by_members: dict[Members, Any] = {
            "everyone": self._open([list(range(here.size))]),
            "chain": self._open(chains),
            "replicas": self._open([here.grid.peers(stage) for stage in range(here.grid.stages)]),
        }
        owners = [here.grid.owner(replica) for replica in range(len(chains))]
        self._edges = {
            border: self._open([[owner[border], owner[border + 1]] for owner in owners])
            for border, (before, after) in enumerate(pairwise(here.owner))
            if before != after
        }

    def of(self, members: Members) -> Any:
        """The group of these members."""
        return self._by_members[members]

    def edge(self, border: int) -> Any:
        """The group of the two processes around a border of this chain, counted from 0; None within a process."""
        return self._edges.get(border)

    def _open(self, groups: list[list[int]]) -> Any:
        """Opens groups of ranks; returns the one that this process is in, or None."""
        made = [dist.new_group(ranks, backend=self._backend, timeout=self._timeout) for ranks in groups]
        return next((group for ranks, group in zip(groups, made, strict=True) if self._rank in ranks), None)
