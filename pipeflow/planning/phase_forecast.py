"""Seconds of a phase for the processes that carry it out, be they fewer or more than the devices.

A forecast speaks of a device per part, where every part learns. A run has turns in which one part learns and others
rest, processes that hold several parts, and on a laptop more processes than cores: no set of them can be faster than
its busiest process, nor than all work shared by as many as can compute at once.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ..config import EndToEndConfig, Turn, micro_batches
from .forecast import Forecast, Replicas, part_seconds, per_part, share, with_micro_batches
from .profile import Link, Profile


class Processes(NamedTuple):
    """The processes that carry a run out.

    Attributes:
        stage_of_part: process of each part in a chain, counted from the chain's first; it computes its parts in turns.
        replicas: chains side by side, or processes of each part.
        at_once: how many of all processes can compute at the same time; the others take turns with them.
    """

    stage_of_part: tuple[int, ...]
    replicas: Replicas
    at_once: float

    @property
    def stages(self) -> int:
        """Number of processes in a chain."""
        return max(self.stage_of_part) + 1

    @property
    def size(self) -> int:
        return sum(per_part(self.replicas, self.stages))

    @property
    def chains(self) -> int:
        """Chains side by side; one where parts have unequal replicas."""
        return 1 if isinstance(self.replicas, tuple) else self.replicas


def phase_seconds(
    profile: Profile,
    at: Sequence[int],
    turns: Sequence[Turn],
    end_to_end: EndToEndConfig | None,
    batch: int,
    link: Link,
    processes: Processes,
) -> float:
    """Seconds of training that a phase takes, as this package carries it out; without evaluations and checkpoints.

    `end_to_end` says how the whole model is spread, in an end-to-end phase, and is None by parts. `batch` is in images,
    over all processes.
    """
    if end_to_end is None:
        return sum(turn.steps * _turn_seconds(profile, at, turn, batch, link, processes) for turn in turns)
    steps, crowding = sum(turn.steps for turn in turns), max(1.0, processes.size / processes.at_once)
    if end_to_end.engine == "pipeline" and processes.stages > 1:
        found = pipeline(profile, at, end_to_end, batch, link, processes)
        computing = (1 - found.idle) * found.seconds * processes.size
        return steps * max(found.seconds, computing / processes.at_once)
    flow, images = profile.parts(())[0], share(batch, processes.size)
    averaging = link.averaging(flow.parameters, processes.size)
    forward_and_update = crowding * (flow.forward(images) + flow.update_s)
    return steps * (forward_and_update + max(crowding * flow.backward(images), averaging))


def pipeline(
    profile: Profile, at: Sequence[int], end_to_end: EndToEndConfig, batch: int, link: Link, processes: Processes
) -> Forecast:
    """A batch end to end in the engine's pipeline: each process keeps its parts, and cuts as many micro-batches."""
    stages = pairwise(processes.stage_of_part)
    borders = [border for border, (stage, after) in zip(at, stages, strict=True) if stage != after]
    images = share(batch, processes.chains)
    try:
        count = micro_batches(end_to_end.micro_batches, images, processes.stages)
    except ValueError:  # a run would refuse; what it would be like is still of interest
        count = min(images, processes.stages)
    return with_micro_batches(profile, borders, batch, count, link, processes.chains)


def _turn_seconds(
    profile: Profile, at: Sequence[int], turn: Turn, batch: int, link: Link, processes: Processes
) -> float:
    """Seconds per batch: parts before the last learner at least run forward, those after it rest."""
    stage_of, last = processes.stage_of_part, max(turn.learners)
    counts = per_part(processes.replicas, len(stage_of))
    images = [share(batch, count) for count in counts]
    work = [
        part_seconds(cost, images[part], link, counts[part]) if part in turn.learners else cost.forward(images[part])
        for part, cost in enumerate(profile.parts(at)[: last + 1])
    ]
    busy = [sum(work[part] for part in range(last + 1) if stage_of[part] == stage) for stage in range(processes.stages)]
    carrying = [
        link.seconds(size * max(images[border : border + 2]))
        for border, size in enumerate(profile.border_bytes(at)[:last])
        if stage_of[border] != stage_of[border + 1]
    ]
    computing = [
        cost.seconds(images[part]) if part in turn.learners else cost.forward(images[part])
        for part, cost in enumerate(profile.parts(at)[: last + 1])
    ]
    together = sum(seconds * count for seconds, count in zip(computing, counts, strict=False))
    return max([*busy, *carrying, together / processes.at_once])
