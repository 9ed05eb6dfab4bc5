"""How long a phase takes for the processes that carry it out, be they fewer or more than the devices.

A forecast speaks of a device a part, where every part learns. A run has turns in which one part learns and others rest,
processes that hold several parts, and on a laptop more processes than cores: no set of them can be faster than its
busiest process, nor than all work shared by as many as can compute at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..config import EndToEndConfig, Turn, micro_batches
from .forecast import Forecast, Link, part_seconds, ring_bytes, share, with_micros
from .profile import Profile


@dataclass(frozen=True)
class Crew:
    """The processes that carry a run out.

    Attributes:
        owner: process of each part in a chain, counted from the chain's first; it computes its parts in turns.
        replicas: chains side by side.
        at_once: how many of all processes can compute at the same time; the others take turns with them.
    """

    owner: tuple[int, ...]
    replicas: int
    at_once: float

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.stages * self.replicas

    @property
    def stages(self) -> int:
        """Processes in a chain."""
        return max(self.owner) + 1


def phase_seconds(
    profile: Profile,
    at: Sequence[int],
    turns: Sequence[Turn],
    joined: EndToEndConfig | None,
    batch: int,
    link: Link,
    crew: Crew,
) -> float:
    """Seconds of training that a phase takes, as this package carries it out; without evaluations and checkpoints.

    Args:
        profile: what was measured.
        at: flow steps before each border.
        turns: of the phase.
        joined: how the whole model is spread, in an end-to-end phase; None by parts.
        batch: images, over all processes.
        link: between two processes.
        crew: who carries it out.
    """
    if joined is None:
        return sum(turn.steps * _tick_seconds(profile, at, turn, batch, link, crew) for turn in turns)
    if joined.engine == "pipeline" and crew.stages > 1:
        found = pipeline(profile, at, joined, batch, link, crew)
        computing = (1 - found.idle) * found.seconds * crew.size
        return max(found.seconds, computing / crew.at_once) * sum(turn.steps for turn in turns)
    whole = profile.parts(())[0]
    crowd = max(1.0, crew.size / crew.at_once)
    images = share(batch, crew.size)
    averaging = link.seconds(ring_bytes(whole.parameters, crew.size))
    step = crowd * (whole.forward(images) + whole.update_s) + max(crowd * whole.backward(images), averaging)
    return step * sum(turn.steps for turn in turns)


def pipeline(
    profile: Profile, at: Sequence[int], joined: EndToEndConfig, batch: int, link: Link, crew: Crew
) -> Forecast:
    """A batch end to end in the engine's pipeline: each process keeps its parts, and so many micro-batches are cut."""
    borders = [border for border, pair in zip(at, pairwise(crew.owner), strict=True) if pair[0] != pair[1]]
    images = share(batch, crew.replicas)
    try:
        micros = micro_batches(joined.micro_batches, images, crew.stages)
    except ValueError:  # a run would refuse; what it would be like is still of interest
        micros = min(images, crew.stages)
    return with_micros("1F1B", profile, borders, images, micros, link, crew.replicas)


def _tick_seconds(profile: Profile, at: Sequence[int], turn: Turn, batch: int, link: Link, crew: Crew) -> float:
    """Seconds a batch: parts before the last learner at least run forward, those behind it rest."""
    owner, images, last = crew.owner, share(batch, crew.replicas), max(turn.learners)
    costs = profile.parts(at)[: last + 1]
    work = [
        part_seconds(cost, images, link, crew.replicas) if part in turn.learners else cost.forward(images)
        for part, cost in enumerate(costs)
    ]
    busy = [sum(work[part] for part in range(last + 1) if owner[part] == rank) for rank in range(max(owner) + 1)]
    carrying = [
        link.seconds(sent * images)
        for border, sent in enumerate(profile.sent(at)[:last])
        if owner[border] != owner[border + 1]
    ]
    return max([*busy, *carrying, sum(work) * crew.replicas / crew.at_once])
