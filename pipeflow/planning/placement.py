"""Which process sits where: stages × replicas over hosts, so that a chain's neighbours are close.

torchrun numbers ranks host by host, so the numbering alone decides which borders cross hosts. With
rank = replica · stages + stage a chain is a run of consecutive ranks: it fills a host before it crosses to the next,
and replicas, which meet only to average gradients, are what is spread.

No numbering crosses less often. Say that two hosts are joined where a chain has ranks on both: joined hosts hold whole
chains only, so they come in groups of a multiple of m = stages / gcd(stages, GPUs a host), and a group of n hosts takes
at least n − 1 crossings. Consecutive ranks form groups of exactly m (or of all hosts), with n − 1 crossings each.
"""

from itertools import pairwise
from typing import NamedTuple

from ..distributed import grid


class Seat(NamedTuple):
    """Where one process sits; everything counts from 0.

    Attributes:
        replica, stage: which chain, and the place in it.
        rank: of the process, in the world.
        host, gpu: of the process.
        parts: positions of the parts that it holds.
    """

    replica: int
    stage: int
    rank: int
    host: int
    gpu: int
    parts: range


class Placement(NamedTuple):
    """A grid of stages × replicas over hosts.

    Attributes:
        stages: processes a chain.
        replicas: chains.
        hosts, gpus_per_host: what they are spread over.
        seats: by rank.
    """

    stages: int
    replicas: int
    hosts: int
    gpus_per_host: int
    seats: tuple[Seat, ...]

    def chain(self, replica: int) -> tuple[Seat, ...]:
        """The seats of one chain, in the order of the stream."""
        return self.seats[replica * self.stages : (replica + 1) * self.stages]

    def replicas_of(self, stage: int) -> tuple[Seat, ...]:
        """The seats that hold the same parts, and average their gradients."""
        return self.seats[stage :: self.stages]

    def crossings(self, replica: int) -> tuple[int, ...]:
        """The stages of a chain behind which its stream goes to another host."""
        return tuple(seat.stage for seat, after in pairwise(self.chain(replica)) if seat.host != after.host)


def place(parts: int, hosts: int, gpus_per_host: int) -> Placement:
    """The grid for a world of hosts × GPUs: a whole number of chains, or one chain whose processes hold several parts.

    Args:
        parts: of a chain.
        hosts, gpus_per_host: one process a GPU, numbered host by host as torchrun does.

    Raises:
        ValueError: a number below 1, or a world that is no whole number of chains, with the sizes that are.
    """
    for name, value in (("parts", parts), ("hosts", hosts), ("GPUs a host", gpus_per_host)):
        if value < 1:
            raise ValueError(f"{value} {name} cannot be placed; there must be at least 1.")
    chains = grid(parts, hosts * gpus_per_host)
    seats = tuple(
        Seat(*divmod(rank, chains.stages), rank, *divmod(rank, gpus_per_host), chains.held(rank))
        for rank in range(chains.size)
    )
    return Placement(chains.stages, chains.replicas, hosts, gpus_per_host, seats)
