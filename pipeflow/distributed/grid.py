"""The grid of processes: stages × replicas, as pure functions of how many parts and processes there are.

`torch.distributed.device_mesh` numbers processes and makes their groups; which sizes fit a chain of parts, and which
process of a chain holds which of its parts, it cannot know. Nothing here talks to anybody.
"""

from dataclasses import dataclass


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
    chain together: rank = replica · stages + stage, all three counted from 0.

    Attributes:
        parts: of the model.
        stages: processes in a chain.
        replicas: chains.
    """

    parts: int
    stages: int
    replicas: int

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.stages * self.replicas

    def replica(self, rank: int) -> int:
        """The chain that a process belongs to."""
        return rank // self.stages

    def chain(self, replica: int) -> list[int]:
        """Ranks of a chain, in order."""
        return list(range(replica * self.stages, (replica + 1) * self.stages))

    def peers(self, stage: int) -> list[int]:
        """Ranks that hold the same parts, one a chain."""
        return list(range(stage, self.size, self.stages))

    def owner(self, replica: int) -> tuple[int, ...]:
        """Rank of each part of a chain, by position."""
        return tuple(replica * self.stages + stage for stage in owners(self.parts, self.stages))

    def held(self, rank: int) -> range:
        """Positions of the parts of a process, consecutive, from 0."""
        owner = self.owner(self.replica(rank))
        return range(owner.index(rank), owner.index(rank) + owner.count(rank))

    def lead(self, depth: int) -> int:
        """How many batches the head of a chain can be ahead of the chain's last process.

        Args:
            depth: packets that a border keeps in flight; one more is posted ahead and one is being worked on.
        """
        return (self.stages - 1) * (depth + 2)

    def describe(self, rank: int) -> str:
        """How messages call a process: "part 2 (rank 1)", "parts 1 to 3 (rank 0)", "part 2 of replica 2 (rank 4)"."""
        held = self.held(rank)
        parts = f"part {held[0] + 1}" if len(held) == 1 else f"parts {held[0] + 1} to {held[-1] + 1}"
        of = f" of replica {self.replica(rank) + 1}" if self.replicas > 1 else ""
        return f"{parts}{of} (rank {rank})"


class Topology:
    """One process in a grid.

    Args:
        grid: of all processes.
        rank: of this one.

    Attributes:
        size: number of processes.
        replica: number of this process's chain, from 0.
        owner: rank of each part of this process's chain, by position.
        mine: positions of this process's parts, consecutive, from 0.
    """

    def __init__(self, grid: Grid, rank: int) -> None:
        self.grid, self.rank, self.size = grid, rank, grid.size
        self.replica = grid.replica(rank)
        self.owner, self.mine = grid.owner(self.replica), grid.held(rank)

    def describe(self, rank: int | None = None) -> str:
        """How messages call a process, this one by default: "part 2 (rank 1)"."""
        return self.grid.describe(self.rank if rank is None else rank)


def grid(parts: int, size: int, replicas: int | None = None) -> Grid:
    """The grid of `size` processes.

    Args:
        parts: number of parts.
        size: number of processes.
        replicas: number of chains; None makes one of up to `parts` processes, and full chains of more.

    Raises:
        ValueError: no whole number of chains fits, with the sizes that do.
    """
    if replicas is None:
        if size > parts and size % parts:
            near = f"the nearest are {size // parts * parts} and {(size // parts + 1) * parts}"
            raise ValueError(
                f"{size} processes do not fit {parts} parts: start 1 to {parts} processes (a process may hold several "
                f"consecutive parts), or a multiple of {parts} for several chains side by side ({near})."
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
