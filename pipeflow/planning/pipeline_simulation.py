"""Simulates a pipeline that trains end to end: how long a batch takes with 1F1B.

With equal stages the share of time lost is (P − 1)/(M + P − 1) (Narayanan et al., "Efficient Large-Scale Language Model
Training", 2021, §2.2). The stages of a flow are not equal, and their latents take time to travel, so here every
operation of every stage is put on a time line: it begins when the operation before it on its device has ended and what
it needs has arrived. Devices compute while their links carry, links carry both ways at once, nothing has latency: a
real pipeline is at best as fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Operation(NamedTuple):
    """What a stage does next: "forward" or "backward" of a micro-batch, or "update"."""

    kind: Literal["forward", "backward", "update"]
    micro: int = 0


@dataclass(frozen=True)
class Stages:
    """A pipeline's stages at work on one batch.

    Attributes:
        forward_s, backward_s: stage → micro-batch → seconds.
        update_s: stage → seconds.
        carry_s: border → micro-batch → seconds that a latent takes forward, and its gradient backward.
    """

    forward_s: Sequence[Sequence[float]]
    backward_s: Sequence[Sequence[float]]
    update_s: Sequence[float]
    carry_s: Sequence[Sequence[float]]


def order(stage: int, stages: int, micros: int) -> list[Operation]:
    """What one stage does for one batch: forward as far as the last stage needs, then backward and forward in turns."""
    ahead = min(micros, stages - stage)
    operations = [Operation("forward", micro) for micro in range(ahead)]
    for micro in range(micros):
        operations.append(Operation("backward", micro))
        if ahead + micro < micros:
            operations.append(Operation("forward", ahead + micro))
    return [*operations, Operation("update")]


def period(stages: Stages, batches: int = 3) -> float:
    """Seconds from one batch to the next: of the last two of `batches` that follow each other without a pause.

    A stage may begin with the next batch as soon as it has updated its own weights.
    """
    many, micros = len(stages.forward_s), len(stages.forward_s[0])
    seconds = {"forward": stages.forward_s, "backward": stages.backward_s, "update": [[one] for one in stages.update_s]}
    plans = [order(stage, many, micros) * batches for stage in range(many)]
    done = [0] * many  # operations that are on the time line
    free = [0.0] * many  # when each device has ended the last of them
    carried: dict[tuple[str, int], float] = {}  # when each link, in each direction, has carried the last
    arrived: dict[tuple[int, str, int, int], float] = {}  # (stage, kind, micro, batch) → when its input is there
    updated: list[float] = []  # when the first stage has updated its weights
    while len(updated) < batches:
        for stage in range(many):
            while done[stage] < len(plans[stage]):
                kind, micro = plans[stage][done[stage]]
                batch, first = done[stage] // (2 * micros + 1), many - 1 if kind == "backward" else 0
                ready = 0.0 if kind == "update" or stage == first else arrived.get((stage, kind, micro, batch))
                if ready is None:
                    break  # another stage has not computed it yet
                end = max(free[stage], ready) + seconds[kind][stage][micro]
                free[stage], done[stage] = end, done[stage] + 1
                if kind == "update":
                    updated += [end] * (stage == 0)
                elif 0 <= (after := stage + (1 if kind == "forward" else -1)) < many:
                    link = (kind, min(stage, after))
                    carried[link] = max(end, carried.get(link, 0.0)) + stages.carry_s[min(stage, after)][micro]
                    arrived[after, kind, micro, batch] = carried[link]
    return updated[-1] - updated[-2]
