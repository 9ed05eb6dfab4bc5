"""Puts what the stages of a chain do on a time line: by parts, in a 1F1B pipeline, or as DDP, a chain of one stage.

Every operation begins when the one before it on its device has ended and what it needs has arrived. Devices compute
while links carry, and links carry both ways at once. Replicas of a chain run side by side, as arrays; the replicas of a
stage meet where they average its gradients. With equal stages a pipeline loses (P − 1)/(M + P − 1) of its time
(Narayanan et al., "Efficient Large-Scale Language Model Training", 2021, §2.2); those of a flow are not equal.

A simulator such as simpy would run a generator per process. In a chain the next operation of each stage is known, so a
heap of the stages that can go on is enough, and an entry of it stands for all replicas.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SLICES = 8  # in which processes that share cores take turns, of every operation
Seconds = Any  # a float, or float64 (replicas,)


class Operation(NamedTuple):
    """What a stage does next: "forward" or "backward" of a micro-batch, or "update"."""

    kind: Literal["forward", "backward", "update"]
    micro: int = 0


@dataclass(frozen=True)
class Stages:
    """The stages of a chain at work on one batch, all times in seconds.

    Attributes:
        forward_s, backward_s: stage → micro-batch → seconds.
        update_s: stage → seconds.
        carry_s: border → micro-batch → seconds that a latent keeps its link busy, and its gradient the way back.
        latency_s: border → seconds until it arrives besides.
        average_s: stage → seconds in which its replicas average gradients, from its last backward pass of a batch on.
        lines: stage → the line over which they do so; it serves one stage at a time.
        depth: by parts, packets in flight over a border, a receive being posted one ahead; None where gradients come
            back, end to end.
        replicas: chains side by side.
        cores: how many of all processes can compute at the same time; None for all of them.
    """

    forward_s: Sequence[Sequence[Seconds]]
    backward_s: Sequence[Sequence[Seconds]]
    update_s: Sequence[Seconds]
    carry_s: Sequence[Sequence[Seconds]]
    latency_s: Sequence[Seconds] | None = None
    average_s: Sequence[float] | None = None
    lines: Sequence[int] | None = None
    depth: int | None = None
    replicas: int = 1
    cores: int | None = None


def order(stage: int, stages: int, micros: int) -> list[Operation]:
    """What one stage does for one batch: forward as far as the last stage needs, then backward and forward in turns.

    By parts every stage does what the last one of a pipeline does.
    """
    ahead = min(micros, stages - stage)
    operations = [Operation("forward", micro) for micro in range(ahead)]
    for micro in range(micros):
        operations.append(Operation("backward", micro))
        if ahead + micro < micros:
            operations.append(Operation("forward", ahead + micro))
    return [*operations, Operation("update")]


def period(stages: Stages) -> float:
    """Seconds from one batch to the next: of the last two of three that follow each other without a pause."""
    ends = updates(stages, batches=3)
    return float(np.max(ends[-1]) - np.max(ends[-2]))


def updates(stages: Stages, batches: int, stretch: NDArray[np.float64] | None = None) -> list[Seconds]:
    """When each batch is done: the stage that is last with it has updated its weights.

    A stage may begin with the next batch as soon as it has updated its own weights.

    Args:
        stages: at work.
        batches: that follow each other without a pause.
        stretch: (stages, batches, replicas), by which the times of a device with a batch are multiplied; ones if None.
    """
    many, micros, by_parts = len(stages.forward_s), len(stages.forward_s[0]), stages.depth is not None
    alone, depth = stages.replicas == 1, stages.depth or 0
    later: Any = max if alone else np.maximum
    seconds = {"forward": stages.forward_s, "backward": stages.backward_s, "update": [[one] for one in stages.update_s]}
    plans = [order(many - 1 if by_parts else stage, many, micros) for stage in range(many)]
    done = [0] * many  # operations that are on the time line
    free: list[Seconds] = [0.0 if alone else np.zeros(stages.replicas)] * many  # when each device ends the last of them
    handed: dict[tuple[str, int, int], Seconds] = {}  # (kind, stage, packet) → when its sender has computed it,
    taken: dict[tuple[str, int, int], Seconds] = {}  # when its receiver has begun with it,
    carried: dict[tuple[str, int, int], Seconds] = {}  # and when its link has carried it in between
    lines: dict[int, float] = {}  # when each line has averaged the last gradients
    cores = [0.0] * (stages.cores or 0)
    slices: list[list[Seconds]] = [
        [] for _ in range(many)
    ]  # of the operation that each stage is at, where cores are few
    ends: list[Seconds] = []
    heap: list[tuple[float, int, Seconds]] = []  # the stages that can go on, and when
    listed = [False] * many

    def next_of(stage: int) -> tuple[str, int, int]:
        """(kind, batch, packet) of a stage's next operation."""
        batch, number = divmod(done[stage], len(plans[stage]))
        kind, micro = plans[stage][number]
        return kind, batch, batch * micros + micro

    def offer(stage: int) -> None:
        """Puts a stage on the heap if all that its next operation needs is on the time line."""
        if listed[stage]:
            return
        kind, batch, packet = next_of(stage)
        sender, ready = stage - 1 if kind == "forward" else stage + 1, free[stage]
        full = kind == "forward" and by_parts and stage + 1 < many and packet >= depth
        if batch == batches or (full and ("forward", stage + 1, packet - depth) not in carried):
            return
        if 0 <= sender < many and kind != "update" and not (kind == "backward" and by_parts):
            if (arrived := carried.get((kind, stage, packet))) is None:
                return
            ready = later(ready, arrived + (stages.latency_s[min(stage, sender)] if stages.latency_s else 0.0))
        listed[stage] = True
        heapq.heappush(heap, (ready if alone else float(ready.min()), stage, ready))

    def carry(kind: str, stage: int, packet: int) -> None:
        """Carries a packet to a stage once it is handed over; by parts also not before the one before it is taken."""
        start, before = handed.get((kind, stage, packet)), (kind, stage, packet - 1)
        if start is None or (by_parts and packet and before not in taken):
            return
        start = later(start, taken[before]) if by_parts and packet else start
        border = stage - 1 if kind == "forward" else stage
        time = stages.carry_s[border][packet % micros]
        carried[kind, stage, packet] = later(start, carried.get(before, 0.0)) + time

    for stage in range(many):
        offer(stage)
    while heap:
        _, stage, ready = heapq.heappop(heap)
        kind, batch, packet = next_of(stage)
        spent = seconds[kind][stage][packet % micros]
        if stretch is not None:
            spent = spent * (stretch[stage, batch, 0] if alone else stretch[stage, batch])
        begin, after = ready, stage + 1 if kind == "forward" else stage - 1
        if cores:
            spent = spent / _SLICES
            ready = _on_cores(cores, ready, spent)
            slices[stage].append(ready)
            if len(slices[stage]) < _SLICES:
                heapq.heappush(heap, (float(np.min(ready + spent)), stage, ready + spent))
                continue
            begin, slices[stage] = slices[stage][0], []
        end = ready + spent
        if kind == "forward" and by_parts:
            taken[kind, stage, packet] = begin
            carry(kind, stage, packet + 1)
        if 0 <= after < many and kind != "update" and not (kind == "backward" and by_parts):
            if by_parts and packet >= depth:
                end = later(end, carried[kind, after, packet - depth])
            handed[kind, after, packet] = end
            carry(kind, after, packet)
        if kind == "backward" and (packet + 1) % micros == 0 and stages.average_s and stages.average_s[stage]:
            line = stages.lines[stage] if stages.lines else stage
            lines[line] = max(float(np.max(begin)), lines.get(line, 0.0)) + stages.average_s[stage]
            end = later(end * 0.0 + float(np.max(end)), lines[line])
        free[stage], done[stage], listed[stage] = end, done[stage] + 1, False
        if kind == "update" and stage == (many - 1 if by_parts else 0):
            ends.append(end)
        for other in range(max(0, stage - 1), min(many, stage + 2)):
            offer(other)
    return ends


def _on_cores(cores: list[float], ready: Seconds, spent: Seconds) -> Seconds:
    """When operations begin that need a core each, in the order in which they are ready."""
    begins, wanted = [], np.broadcast_to(spent, np.shape(ready)).reshape(-1)
    for at, time in zip(np.reshape(ready, -1), wanted, strict=True):
        core = cores.index(min(cores))
        begins.append(max(float(at), cores[core]))
        cores[core] = begins[-1] + float(time)
    return begins[0] if np.ndim(ready) == 0 else np.array(begins)
