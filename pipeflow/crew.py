"""How long a phase takes for the processes that carry it out, be they fewer or more than the devices.

A forecast speaks of a device a part, where every part learns. A run has turns in which one part learns and others rest,
processes that hold several parts, and on a laptop more processes than cores: no set of them can be faster than its
busiest process, nor than all work shared by as many as can compute at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .cost import Profile
from .forecast import Link, part_seconds, ring_bytes, share
from .schedule import Turn


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
        return (max(self.owner) + 1) * self.replicas


def phase_seconds(
    profile: Profile, at: Sequence[int], turns: Sequence[Turn], joined: bool, batch: int, link: Link, crew: Crew
) -> float:
    """Seconds of training that a phase takes, as this package carries it out; without evaluations and checkpoints.

    Args:
        profile: what was measured.
        at: flow steps before each border.
        turns: of the phase.
        joined: whether the phase is end to end.
        batch: images, over all processes.
        link: between two processes.
        crew: who carries it out.
    """
    if not joined:
        return sum(turn.steps * _tick_seconds(profile, at, turn, batch, link, crew) for turn in turns)
    whole = profile.parts(())[0]
    crowd = max(1.0, crew.size / crew.at_once)
    images = share(batch, crew.size)
    averaging = link.seconds(ring_bytes(whole.parameters, crew.size))
    step = crowd * (whole.forward(images) + whole.update_s) + max(crowd * whole.backward(images), averaging)
    return step * sum(turn.steps for turn in turns)


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
