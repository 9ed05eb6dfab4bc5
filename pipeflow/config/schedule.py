"""Who learns when: pure functions from phases to turns, and from turns to segments between two evaluations.

Nothing here touches a tensor; the plans are carried out in training/phase.py and tested as literal tables.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from .phases import PhaseConfig


class Turn(NamedTuple):
    """Some parts (positions from 0) learn from `steps` batches; the parts before the last of them run forward."""

    learners: tuple[int, ...]
    steps: int


class Segment(NamedTuple):
    """What is done without a pause: `steps` batches of a phase's turn number `turn`, from batch `start` of the run."""

    turn: int
    learners: tuple[int, ...]
    start: int
    steps: int


def steps_of(epochs: float, images: int, batch: int) -> int:
    """Batches in so many passes over the data, at least 1."""
    return max(1, round(epochs * images / batch))


def phase_steps(phase: PhaseConfig, images: int, batch: int) -> int:
    """Length of a phase in batches."""
    return phase.steps or steps_of(phase.epochs or 0.0, images, batch)


def turns(phase: PhaseConfig, parts: int, images: int, batch: int) -> list[Turn]:
    """The turns of a phase.

    Args:
        phase: schedule and length.
        parts: number of parts.
        images, batch: size of the training set and of a batch, for lengths in epochs.

    Raises:
        ValueError: a sequential phase with fewer steps than parts.
    """
    total = phase_steps(phase, images, batch)
    if phase.schedule in ("simultaneous", "end_to_end"):
        return [Turn(tuple(range(parts)), total)]
    if phase.schedule == "sequential":
        if total < parts:
            raise ValueError(f"A sequential phase of {total} steps cannot be shared by {parts} parts.")
        return [Turn((part,), total // parts + (part < total % parts)) for part in range(parts)]
    # Borders are rounded, not lengths: 60 turns of an epoch are 60 epochs, whatever an epoch leaves of its last batch.
    borders = [0]
    while borders[-1] < total:
        number = len(borders)
        end = number * (phase.turn_steps or 0) or steps_of(number * (phase.turn_epochs or 1.0), images, batch)
        borders.append(min(total, max(end, borders[-1] + 1)))
    return [Turn((number % parts,), end - start) for number, (start, end) in enumerate(pairwise(borders))]


def stops(images: int, batch: int, epochs: float, start: int, end: int) -> list[int]:
    """The steps in (start, end] at which another `epochs` passes over the data are complete."""
    unit = epochs * images
    return [t for t in range(start + 1, end + 1) if t * batch // unit > (t - 1) * batch // unit]


def multiples(every: int | None, start: int, end: int) -> list[int]:
    """The multiples of `every` in (start, end]; none of None."""
    return [t for t in range(start + 1, end + 1) if t % every == 0] if every else []


def segments(plan: list[Turn], start: int, pauses: list[int], at: int | None = None) -> Iterator[Segment]:
    """Cuts turns at the steps where the run pauses.

    Args:
        plan: the turns.
        start: the step of the run at which the first of them begins.
        pauses: steps of the run, in order.
        at: the step that the run has reached; what lies before it is left out.
    """
    at = start if at is None else at
    for number, turn in enumerate(plan):
        end = start + turn.steps
        borders = [max(start, at), *(step for step in pauses if max(start, at) < step < end), end]
        if at < end:
            for first, last in pairwise(borders):
                yield Segment(number, turn.learners, first, last - first)
        start = end


def lessons(plan: list[Turn], part: int, done: int) -> int:
    """From how many of the first `done` batches of a phase a part has learned: its updates, skipped ones included."""
    count = 0
    for turn in plan:
        count += min(turn.steps, max(0, done)) * (part in turn.learners)
        done -= turn.steps
    return count


def micro_batches(wanted: int | None, images: int, stages: int) -> int:
    """Into how many equal pieces a pipeline cuts a batch.

    Args:
        wanted: the setting; None takes the fewest that will do.
        images: a chain's share of a batch.
        stages: processes in the chain; with fewer micro-batches than these, 1F1B has no order of them.

    Raises:
        ValueError: pieces that are too few, or not equal, and what would fit.
    """
    fitting = [pieces for pieces in range(stages, images + 1) if images % pieces == 0]
    if wanted in fitting:
        return wanted
    if not fitting:
        raise ValueError(
            f"end_to_end.engine is pipeline, but the {images} image{'s' * (images != 1)} of a batch that a chain takes "
            f"cannot be {stages} micro-batches for its {stages} processes; use a larger data.batch, or engine fsdp."
        )
    if wanted is None:
        return fitting[0]
    raise ValueError(
        f"end_to_end.micro_batches is {wanted}, but a chain of {stages} processes takes {images} images a batch, which "
        f"must be cut into equal pieces, at least {stages}: {', '.join(map(str, fitting))} will do."
    )
