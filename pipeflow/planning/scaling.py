"""What a flow does on 1, 2, 4, … devices of a cluster, by each way to use them, and where that ends and why.

Each way gets the grid of stages × replicas, the cut and the micro-batches that suit it best. Its batches are put on a
time line (timeline.py) with the cluster's links, its devices' differences and jitter; its failures on another
(cluster.py). Averaging and packets do not disturb each other on a line that carries both.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from math import inf, log2
from operator import attrgetter
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..config import Config, phase_steps
from ..data import packet_sizes
from ..distributed import ParallelConfig
from .balance import balanced_cut
from .cluster import Cluster
from .forecast import DEFAULT, MICRO_BATCHES, at_work, share
from .profile import Link, Profile, ring_bytes
from .timeline import Seconds, Stages, updates

Way = Literal["by parts", "by parts + tail", "DDP", "1F1B"]
WAYS: tuple[Way, ...] = ("by parts", "by parts + tail", "DDP", "1F1B")  # as they are shown
TIMED: tuple[Way, ...] = ("by parts", "DDP", "1F1B")  # what is put on a time line
_FILL, _MEASURED = 5, 30  # batches, where they differ from one another


@dataclass(frozen=True)
class Simulated:
    """What one way does on so many devices.

    Attributes:
        way, devices, stages, replicas, micro_batches: how it trains.
        images_per_s: of all devices together, while none fails.
        goodput: images/s with failures, counting each image once.
        line_bytes: per batch and direction, over the slowest line that it uses.
        bound: what sets the pace.
    """

    way: Way
    devices: int
    stages: int
    replicas: int
    micro_batches: int
    images_per_s: float
    goodput: float
    line_bytes: float
    bound: str


@dataclass(frozen=True)
class Simulation:
    """A measured flow on a cluster.

    Attributes:
        profile: what was measured.
        cluster: what it is played on.
        batch: images, over all devices.
        parallel: packets per batch and in flight over a border, by parts.
        every: batches between two checkpoints; None for none.
        tail: share of the batches that "by parts + tail" trains end to end.
    """

    profile: Profile
    cluster: Cluster
    batch: int
    parallel: ParallelConfig = DEFAULT
    every: int | None = 1000
    tail: float = 1 / 3

    @classmethod
    def of(cls, profile: Profile, cluster: Cluster, config: Config, images: int) -> Self:
        """Of a run with so many images; its tail is its own, or a third if it has none."""
        steps = {phase.schedule: 0 for phase in config.phases}
        for phase in config.phases:
            steps[phase.schedule] += phase_steps(phase, images, config.data.batch)
        tail = steps.get("end_to_end", 0) / sum(steps.values())
        tail = tail if 0 < tail < 1 else 1 / 3
        return cls(profile, cluster, config.data.batch, config.parallel, config.checkpoint.every, tail)

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        return {way: list(map(asdict, rows)) for way, rows in self.rows.items()}

    @cached_property
    def rows(self) -> dict[Way, list[Simulated]]:
        """For each way, what it does on 1, 2, 4, … and all devices; counts that it cannot use are left out."""
        most, found = self.cluster.devices, {way: list[Simulated]() for way in WAYS}
        for count in sorted({2**power for power in range(most.bit_length())} | {most}):
            ways: dict[Way, Simulated] = {way: row for way in TIMED if (row := self.best(way, count))}
            end_to_end = [row for way, row in ways.items() if way != "by parts"]
            if "by parts" in ways and end_to_end:
                fastest = max(end_to_end, key=attrgetter("images_per_s"))
                ways["by parts + tail"] = self._with_tail(ways["by parts"], fastest)
            for way, row in ways.items():
                found[way].append(row)
        return found

    def best(self, way: Way, devices: int) -> Simulated | None:
        """The grid of so many devices that is fastest; None where there is none."""
        grids = [(1, devices)] * (devices <= self.batch)
        if way != "DDP":
            grids = self.cluster.grids(devices, len(self.profile.steps), self.batch)
        counts = {"1F1B": MICRO_BATCHES, "by parts": (self.parallel.packets,)}.get(way, (1,))
        tries = [(*grid, count) for grid in grids for count in counts if count <= share(self.batch, grid[1])]
        if not tries:
            return None
        return self.play(way, *max(tries, key=lambda one: self.play(way, one[0], one[1], one[2], True).images_per_s))

    def play(
        self,
        way: Way,
        stages: int,
        replicas: int,
        micro_batches: int,
        alike: bool = False,
        at: Sequence[int] | None = None,
    ) -> Simulated:
        """Plays some batches on a time line.

        Devices that are `alike` all take the mean time, and do not fail; `at` is a cut, the best one if None.
        """
        cluster, devices, by_parts = self.cluster, stages * replicas, way == "by parts"
        sizes = packet_sizes(share(self.batch, replicas), micro_batches)
        profile, line = self.profile if by_parts else self.profile.end_to_end(), cluster.slowest(devices)
        at = at or _cut(profile, stages, sum(sizes), line)
        border_bytes, lines = profile.border_bytes(at), cluster.lines(stages, replicas)
        costs = [
            replace(cost, update_s=cost.update_s + cluster.handling_s * ring_bytes(cost.parameters, replicas))
            for cost in profile.parts(at)
        ]
        stretch = None if alike else cluster.stretch(stages, _FILL + _MEASURED + 3 * stages, replicas)
        crossing, steady = cluster.crossing(stages, replicas), stretch is None and cluster.at_once is None
        if steady:  # chains that go to other hosts at the same borders are one
            crossing = np.unique(crossing, axis=1) if stages > 1 else crossing[:, :1]
        links = [[cluster.line if other else cluster.link for other in border] for border in crossing]
        chain = at_work(
            costs,
            sizes,
            [_per_chain([link.seconds(size) for link in of]) for of, size in zip(links, border_bytes, strict=True)],
            latency_s=[_per_chain([link.latency_s for link in of]) for of in links],
            average_s=[line.averaging(cost.parameters, replicas) for cost in costs],
            lines=lines,
            depth=None if way == "1F1B" else self.parallel.depth,
            replicas=crossing.shape[1],
            cores=cluster.at_once,
        )
        batches = (3 if way == "1F1B" else 12) if steady else _FILL + _MEASURED
        # What the stages before the last are at while it ends the last batch that counts takes cores and lines from it.
        behind = 0 if steady and (replicas == 1 or not by_parts) else 3 * stages
        ends = [float(np.max(end)) for end in updates(chain, batches + behind, stretch)[:batches]]
        fill = batches // 2 if steady else _FILL
        seconds = (ends[-1] - ends[fill]) / (batches - 1 - fill)
        works = [cost.forward(size) + cost.backward(size) for cost in costs for size in sizes]
        busy = np.reshape(works, (stages, -1)).sum(1) + [cost.update_s for cost in costs]
        averaged = np.bincount(lines, [ring_bytes(cost.parameters, replicas) for cost in costs])
        crossed = [size * sum(sizes) for size, of in zip(border_bytes, links, strict=True) if line in of]
        if by_parts and replicas == 1:  # the others wait, while the one that was lost takes its own time
            cost_s, again = cluster.rejoin_s, float(busy.mean()) / seconds
        else:
            cost_s, again = cluster.restart_s, 1.0
        useful = 1.0 if alike else cluster.useful(devices, cost_s, again, (self.every or inf) * seconds)
        return Simulated(
            way=way,
            devices=devices,
            stages=stages,
            replicas=replicas,
            micro_batches=micro_batches,
            images_per_s=self.batch / seconds,
            goodput=self.batch / seconds * useful,
            line_bytes=float(averaged.max()) + max(crossed, default=0),
            bound=_bound(way, chain, busy, seconds) or f"computing, {sizes[0]} at a time",
        )

    def _with_tail(self, parts: Simulated, tail: Simulated) -> Simulated:
        """By parts, and the last batches end to end on the same devices."""
        mixed: dict[str, Any] = {
            name: 1 / ((1 - self.tail) / getattr(parts, name) + self.tail / getattr(tail, name))
            for name in ("images_per_s", "goodput")
        }
        size = (1 - self.tail) * parts.line_bytes + self.tail * tail.line_bytes
        return replace(parts, way="by parts + tail", line_bytes=size, bound=f"{tail.way}: {tail.bound}", **mixed)


def limit(rows: Sequence[Simulated], most: int) -> tuple[int, str] | None:
    """(devices, why) where twice as many are no longer 1.2 times as fast; None if that is not up to `most`."""
    for row, after in pairwise(rows):
        if after.images_per_s < row.images_per_s * 1.2 ** log2(after.devices / row.devices):
            return row.devices, after.bound
    return None if rows[-1].devices == most else (rows[-1].devices, "too few images or flow steps")


def _bound(way: Way, chain: Stages, busy: NDArray[np.float64], seconds: float) -> str:
    """What is busy longest while a batch is trained; "" for devices that all compute."""
    carrying = [float(np.max(np.sum(border, axis=0))) for border in chain.carry_s]
    averaging = float(np.bincount(chain.lines or [0], chain.average_s).max())
    longest = max(float(busy.max()), averaging, *carrying)
    if way == "1F1B" and longest < 0.75 * seconds:
        return "bubble"
    if longest == averaging:
        return "gradients"
    if longest in carrying:
        return f"border {carrying.index(longest) + 1}"
    uneven = float(busy.max() / busy.mean())
    return f"part {busy.argmax() + 1}, {uneven:.1f} × the mean" if uneven > 1.25 else ""


def _per_chain(values: Sequence[float]) -> Seconds:
    """One figure, or one per chain."""
    return np.array(values) if len(values) > 1 else values[0]


@cache
def _cut(profile: Profile, stages: int, images: int, line: Link) -> tuple[int, ...]:
    return balanced_cut(profile, stages, images, line)
