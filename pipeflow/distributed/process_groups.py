"""The groups of `torch.distributed` that a grid of processes needs."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from .grid import Topology
from .settings import ParallelConfig
from .world import Members

# Between turns a process may wait for as long as others learn. A dead peer closes its sockets, a stuck one misses its
# heartbeats. While they connect there are no sockets yet.
_CONTROL_TIMEOUT = timedelta(days=30)
_LONGEST_CONNECT_S = 120.0


class ProcessGroups:
    """The groups that a process is in, beside the default one, which carries control messages over gloo.

    Those for training by parts, of neighbours and of replicas, are opened here, in one order by all processes. Those of
    a whole chain and of everyone cost time and memory over NCCL, where they are opened when all processes first ask for
    them, at one point of an end-to-end phase; opened one by one when a process happens to need them they could
    deadlock. Over gloo they are opened here, everyone's first: PyTorch numbers groups, and its DTensors remember the
    number that the group of these ranks had in an earlier world. There are no groups of one process.

    Args:
        here: this process among the others.
        config: for the time-out.
        backend: "gloo" or "nccl".
    """

    def __init__(self, here: Topology, config: ParallelConfig, backend: str) -> None:
        self._here, self._backend, self._timeout = here, backend, _timeout(config, backend)
        self._opened: dict[str, Any] = {}
        eager: tuple[Members, ...] = ("everyone", "chain", "replicas") if backend == "gloo" else ("replicas",)
        for members in eager:
            self.of(members)
        edges = [(edge, self._open([list(edge)])) for edge in here.grid.edges()]
        self._edges = {sum(edge) - here.rank: group for edge, group in edges if here.rank in edge}

    def of(self, members: Members) -> Any:
        """The group of these members; all processes must ask for it at the same point when they first do."""
        grid = self._here.grid
        groups = {
            "everyone": [list(range(grid.size))],
            "chain": [grid.chain(replica) for replica in range(grid.replicas)],
            "replicas": [grid.peers(stage) for stage in range(grid.stages)],
        }[members]
        if (ranks := str(groups)) not in self._opened:  # of two names for the same processes one group is opened
            self._opened[ranks] = self._open(groups)
        return self._opened[ranks]

    def edge(self, rank: int) -> Any:
        """The group of this process and a neighbour in its chain; None of other processes."""
        return self._edges.get(rank)

    def _open(self, groups: list[list[int]]) -> Any:
        """Opens groups of ranks, those of several; returns the one that this process is in, or None."""
        several = [ranks for ranks in groups if len(ranks) > 1]
        made = [dist.new_group(ranks, backend=self._backend, timeout=self._timeout) for ranks in several]
        return next((group for ranks, group in zip(several, made, strict=True) if self._here.rank in ranks), None)


def open_control_group(rank: int, size: int, store: Store, config: ParallelConfig) -> None:
    """Opens the default group, of all processes; they tell each other their addresses in the store.

    A RuntimeError says that one of them did not, for `parallel.timeout_s` or two minutes.
    """
    connect = timedelta(seconds=min(config.timeout_s, _LONGEST_CONNECT_S))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=connect)
    control = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    control._set_default_timeout(_CONTROL_TIMEOUT)  # dist.set_timeout, which PyTorch 2.11 does not have


def _timeout(config: ParallelConfig, backend: str) -> timedelta:
    """After which a transport gives up by itself.

    gloo counts from when a process begins to wait, and raises an error. NCCL counts from when a transfer was posted,
    and ends the process before a word is said; so it only guards against what nobody else sees. A send is waited for
    after up to `depth` more batches, a receive after one: each may take as long as a process may compute unsuspected,
    and then the wait itself.
    """
    if backend == "gloo":
        return timedelta(seconds=config.timeout_s)
    return timedelta(seconds=(config.depth + 2) * (config.timeout_s + 10 * config.heartbeat_s))
