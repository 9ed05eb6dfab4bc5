"""Spreads stages × replicas over hosts, so that neighbours in a chain are close.

torchrun numbers ranks host by host, so the numbering alone decides which borders cross hosts. With
rank = replica · stages + stage a chain is a run of consecutive ranks: it fills a host before it crosses to the next,
and replicas, which meet only to average gradients, are what is spread.

No numbering crosses less often. Say that two hosts are joined where a chain has ranks on both: joined hosts hold
complete chains only, so they come in groups of a multiple of m = stages / gcd(stages, GPUs per host), and a group of n
hosts takes at least n − 1 crossings. Consecutive ranks form groups of exactly m (or of all hosts), with n − 1 crossings
each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..distributed import grid


class PlacedProcess(NamedTuple):
    """A process: which of which chain it is, where it runs and which parts it holds; everything counts from 0.

    Where parts have unequal replicas, `replica` is that of its part.
    """

    replica: int
    stage: int
    rank: int
    host: int
    gpu: int
    parts: range


class Placement(NamedTuple):
    """A grid of stages × replicas over hosts, with one process per GPU.

    Attributes:
        stages, replicas: of the grid; where parts have unequal replicas, the most of one part.
        hosts, gpus_per_host: where it is.
        processes: by rank.
        sharers: replicas of each part where they are unequal, else empty.
        leaving: ranks of which some of the stream goes to another host.
    """

    stages: int
    replicas: int
    hosts: int
    gpus_per_host: int
    processes: tuple[PlacedProcess, ...]
    sharers: tuple[int, ...]
    leaving: frozenset[int]

    def chain(self, replica: int) -> tuple[PlacedProcess, ...]:
        """The processes of one chain, or those with this number in their parts, in the order of the stream."""
        return tuple(process for process in self.processes if process.replica == replica)

    def crossings(self, replica: int) -> tuple[int, ...]:
        """The stages of a chain after which its stream goes to another host."""
        return tuple(process.stage for process in self.chain(replica) if process.rank in self.leaving)

    def as_list(self) -> list[dict[str, Any]]:
        return [one._asdict() | {"parts": [one.parts.start, one.parts.stop]} for one in self.processes]


def place_processes(
    parts: int, hosts: int, gpus_per_host: int, replicas: int | Sequence[int] | None = None
) -> Placement:
    """The grid for a world of hosts × GPUs: complete chains, or one chain whose processes hold several parts.

    By default there are as many replicas as the processes make. A ValueError names a number below 1, or the sizes that
    would make complete chains.
    """
    for name, value in (("parts", parts), ("hosts", hosts), ("GPUs a host", gpus_per_host)):
        if value < 1:
            raise ValueError(f"{value} {name} cannot be placed; there must be at least 1.")
    chains = grid(parts, hosts * gpus_per_host, replicas)
    many = max(chains.sharers or [chains.replicas])
    peers = [chains.peers(stage) for stage in range(chains.stages)]
    processes = tuple(
        PlacedProcess(peers[stage].index(rank), stage, rank, *divmod(rank, gpus_per_host), chains.held(rank))
        for rank, stage in enumerate(map(chains.stage, range(chains.size)))
    )
    leaving = frozenset(rank for rank, other in chains.edges() if rank // gpus_per_host != other // gpus_per_host)
    return Placement(chains.stages, many, hosts, gpus_per_host, processes, chains.sharers, leaving)
