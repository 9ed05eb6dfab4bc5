"""The grid of processes: stages × replicas, as pure functions of how many parts and processes there are.

Replicas are whole chains side by side, or one chain in which some parts have more processes than others.

`torch.distributed.device_mesh` numbers processes and makes their groups; which sizes fit a chain of parts, and which
process of a chain holds which of its parts, it cannot know. Nothing here talks to anybody.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import lcm


def owners(parts: int, stages: int) -> tuple[int, ...]:
    """Which stage of a chain holds which part: consecutive parts, as even as can be, the first stages one more.

    Args:
        parts: number of parts.
        stages: number of processes in the chain, at most one a part.
    """
    assert 1 <= stages <= parts, (parts, stages)
    least, more = divmod(parts, stages)
    return tuple(stage for stage in range(stages) for _ in range(least + (stage < more)))


@dataclass(frozen=True)
class Grid:
    """Chains of processes side by side; each chain holds every part once.

    The processes of a chain have consecutive ranks, so that a launcher that numbers host by host keeps neighbours of a
    chain together: rank = replica · stages + stage, all three counted from 0. The processes of a stage that has several
    have consecutive ranks too, and share its packets in the order of the images.

    Attributes:
        parts: of the model.
        stages: of a chain, each with a process or several.
        replicas: chains.
        sharers: processes of each stage, which then holds one part; empty where each has one process.
    """

    parts: int
    stages: int
    replicas: int
    sharers: tuple[int, ...] = ()

    @cached_property
    def _stage_of(self) -> tuple[int, ...]:
        """Stage of each process of a chain."""
        sharers = self.sharers or (1,) * self.stages
        return tuple(stage for stage, processes in enumerate(sharers) for _ in range(processes))

    @cached_property
    def _begins(self) -> tuple[int, ...]:
        """Number of each stage's first process in a chain, by position of the stage's parts."""
        before = list(accumulate(self.sharers or (1,) * self.stages, initial=0))
        return tuple(before[stage] for stage in owners(self.parts, self.stages))

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self._stage_of) * self.replicas

    @property
    def unit(self) -> int:
        """The smallest packet of which all processes of each stage take equally many images."""
        return lcm(*self.sharers)

    def replica(self, rank: int) -> int:
        """The chain that a process belongs to."""
        return rank // len(self._stage_of)

    def chain(self, replica: int) -> list[int]:
        """Ranks of a chain, in order."""
        processes = len(self._stage_of)
        return list(range(replica * processes, (replica + 1) * processes))

    def stage(self, rank: int) -> int:
        """The stage that a process belongs to, in its chain."""
        return self._stage_of[rank % len(self._stage_of)]

    def peers(self, stage: int) -> list[int]:
        """Ranks that hold the same parts, in all chains."""
        return [rank for rank in range(self.size) if self.stage(rank) == stage]

    def owner(self, replica: int) -> tuple[int, ...]:
        """Rank of each part of a chain, the first where several hold it, by position."""
        first = replica * len(self._stage_of)
        return tuple(first + begin for begin in self._begins)

    def held(self, rank: int) -> range:
        """Positions of the parts of a process, consecutive, from 0."""
        stages = owners(self.parts, self.stages)
        first = stages.index(self.stage(rank))
        return range(first, first + stages.count(self.stage(rank)))

    def holders(self, replica: int, part: int) -> range:
        """Ranks that hold a part in a chain, and share its packets."""
        first = replica * len(self._stage_of) + self._begins[part]
        return range(first, first + (self.sharers[part] if self.sharers else 1))

    def share(self, rank: int, images: int) -> range:
        """Which images of a packet of its chain a process takes, counted from 0; of fewer than holders, maybe none."""
        sharers = self.holders(self.replica(rank), self.held(rank)[0])
        place = rank - sharers.start
        return range(place * images // len(sharers), (place + 1) * images // len(sharers))

    def edges(self) -> list[tuple[int, int]]:
        """Ranks of two processes of neighbouring stages that have images in common, border by border."""
        return [
            (before, after)
            for part, (first, second) in enumerate(pairwise(self._begins))
            if first != second
            for replica in range(self.replicas)
            for before in self.holders(replica, part)
            for after in self.holders(replica, part + 1)
            if overlap(self.share(before, self.unit), self.share(after, self.unit))
        ]

    def lead(self, depth: int) -> int:
        """How many batches the head of a chain can be ahead of the chain's last process.

        Args:
            depth: packets that a border keeps in flight; one more is posted ahead and one is being worked on.
        """
        return (self.stages - 1) * (depth + 2)

    def describe(self, rank: int) -> str:
        """How messages call a process: "part 2 (rank 1)", "parts 1 to 3 (rank 0)", "part 2 of replica 2 (rank 4)".

        Where a part has more processes than others, "part 1, replica 2 (rank 1)".
        """
        held = self.held(rank)
        parts = f"part {held[0] + 1}" if len(held) == 1 else f"parts {held[0] + 1} to {held[-1] + 1}"
        of = f" of replica {self.replica(rank) + 1}" if self.replicas > 1 else ""
        if len(sharers := self.holders(self.replica(rank), held[0])) > 1:
            parts += f", replica {rank - sharers.start + 1}"
        return f"{parts}{of} (rank {rank})"


class Topology:
    """One process in a grid.

    Args:
        grid: of all processes.
        rank: of this one.

    Attributes:
        size: number of processes.
        replica: number of this process's chain, from 0.
        peers: ranks of all processes that hold the same parts, this one among them.
        leads: whether this is the first of them, which saves and records for all, since replicas are equal.
        owner: rank of each part of this process's chain, the first where several hold it, by position.
        mine: positions of this process's parts, consecutive, from 0.
    """

    def __init__(self, grid: Grid, rank: int) -> None:
        self.grid, self.rank, self.size = grid, rank, grid.size
        self.replica, self.peers = grid.replica(rank), grid.peers(grid.stage(rank))
        self.leads = rank == self.peers[0]
        self.owner, self.mine = grid.owner(self.replica), grid.held(rank)

    def describe(self, rank: int | None = None) -> str:
        """How messages call a process, this one by default: "part 2 (rank 1)"."""
        return self.grid.describe(self.rank if rank is None else rank)


def overlap(mine: range, theirs: range) -> range:
    """Which of `mine` are among `theirs`, counted from the first of `mine`."""
    return range(max(mine.start, theirs.start) - mine.start, min(mine.stop, theirs.stop) - mine.start)


def unequal(parts: int, replicas: int | Sequence[int] | None) -> tuple[int, ...]:
    """Processes of each part, where `parallel.replicas` lists unequal numbers; else empty.

    Raises:
        ValueError: the list has not a number for each part.
    """
    if not isinstance(replicas, Sequence):
        return ()
    if len(replicas) != parts:
        raise ValueError(
            f"parallel.replicas lists {len(replicas)} numbers for {parts} parts (cut.parts); give one for each part."
        )
    return tuple(replicas) if len(set(replicas)) > 1 else ()


def grid(parts: int, size: int, replicas: int | Sequence[int] | None = None) -> Grid:
    """The grid of `size` processes.

    Args:
        parts: number of parts.
        size: number of processes.
        replicas: number of chains; None makes one of up to `parts` processes, and full chains of more; a list gives
            each part so many processes, and means as many chains if all are equal.

    Raises:
        ValueError: no whole number of chains fits, with the sizes that do.
    """
    if sharers := unequal(parts, replicas):
        if size != sum(sharers):
            raise ValueError(
                f"parallel.replicas is {list(sharers)}, which takes {sum(sharers)} processes, but there "
                f"{'are' if size > 1 else 'is'} {size}; start {sum(sharers)}, or give other replicas."
            )
        return Grid(parts, parts, 1, sharers)
    if isinstance(replicas, Sequence):
        replicas = replicas[0]
    if replicas is None:
        if size > parts and size % parts:
            near = f"the nearest are {size // parts * parts} and {(size // parts + 1) * parts}"
            raise ValueError(
                f"{size} processes do not fit {parts} parts: start 1 to {parts} processes (a process may hold several "
                f"consecutive parts), or a multiple of {parts} for several chains side by side ({near}); or list "
                "how many each part gets (parallel.replicas)."
            )
        replicas = max(1, size // parts)
    if size % replicas or size // replicas > parts:
        count = f"{size} process{'es' * (size > 1)}"
        if replicas == 1:
            raise ValueError(f"{count} do not fit one chain of {parts} parts: start 1 to {parts} processes.")
        raise ValueError(
            f"parallel.replicas is {replicas}, but {count} cannot be {replicas} equal chains of up to {parts} "
            f"processes: start a multiple of {replicas}, at most {replicas * parts}."
        )
    return Grid(parts, size // replicas, replicas)
