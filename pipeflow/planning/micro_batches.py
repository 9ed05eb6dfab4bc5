"""`parallel.micro_batches: auto`: the fewest packets per batch that fit into the memory of every process.

Chosen before there is a model, from shapes alone: states are counted by parameter, and what autograd keeps is counted
as it is for a plan. One step at work takes as much again as it keeps, twice where it is recomputed.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from ..config import Config
from ..data import Space, packet_sizes
from ..distributed import Grid
from ..model import Maker, Truncated, build
from ..units import amount
from .measure import saved_bytes
from .run_profile import PriorStep, state_bytes

USABLE = 0.8
"""Of a process's memory; the rest is for libraries and for what an allocator cannot use again."""


class Need(NamedTuple):
    """Bytes that a part takes whatever the batch, and per image of a packet."""

    fixed: float
    per_image: float

    def of(self, images: int) -> float:
        """Bytes with packets of so many images."""
        return self.fixed + self.per_image * images


def need(truncated: Truncated, config: Config, averaged: bool = False) -> Need:
    """What a part takes that learns; `averaged`: DDP keeps its gradients a second time."""
    part, prior = truncated.part, PriorStep(truncated.prior)
    steps, depth = [step for _, step in part.chain()], config.parallel.depth
    every = saved_bytes([*steps, prior], part.event_in, "keep")
    kept = saved_bytes(steps, part.event_in, config.activations) + every[-1:]
    at_work = max(per_image for _, per_image in every) * (1 if config.activations == "keep" else 2)
    parameters = sum(parameter.numel() for parameter in truncated.parameters())
    state = state_bytes(config) + 4 * averaged  # DDP's buckets
    packets = 2 * config.parallel.bytes_per_image(part.event_in) + depth * config.parallel.bytes_per_image(
        part.event_out
    )
    fixed, per_image = map(sum, zip(*kept, strict=True))
    return Need(state * parameters + fixed, per_image + at_work + packets)


def with_chosen_micro_batches(
    config: Config, space: Space, grid: Grid, memory: Sequence[float], flow: Maker | None = None
) -> Config:
    """The settings with a number of micro-batches.

    Args:
        config: with a cut that is not balanced any more.
        space: of the data.
        grid: of all processes.
        memory: bytes that each of them may use, by rank.
        flow: that a script hands over.

    Raises:
        ValueError: not even one image per packet fits.
    """
    if config.parallel.micro_batches != "auto":
        return config
    slices, whole = build(config.model, space, flow)
    batch, joined = config.data.batch, any(phase.schedule == "end_to_end" for phase in config.phases)
    units = batch // (grid.replicas * grid.unit)
    loads: list[tuple[int, int, int, list[Need]]] = []  # rank, how many units it cuts, images of each, what it learns
    for rank in range(grid.size):
        averaged = len(grid.peers(grid.stage(rank))) > 1
        needs = [need(slices[part], config, averaged) for part in grid.held(rank)]
        loads.append((rank, units, len(grid.share(rank, grid.unit)), needs))
    if joined and not config.pipelined(grid.stages):
        everything = need(whole, config, grid.size > 1)
        if config.end_to_end.engine == "fsdp":
            everything = everything._replace(fixed=everything.fixed / grid.size)
        loads += [(rank, batch // grid.size, 1, [everything]) for rank in range(grid.size)]
    for count in range(1, min(many for _, many, _, _ in loads) + 1):
        if config.cuda_graphs and units % count:
            continue
        short = [
            (rank, total)
            for rank, many, each, needs in loads
            if (total := sum(one.of(packet_sizes(many, count)[0] * each) for one in needs)) > USABLE * memory[rank]
        ]
        if not short:
            return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, micro_batches=count))
    rank, total = max(short, key=lambda one: one[1] / memory[one[0]])
    raise ValueError(
        f"parallel.micro_batches is auto, but even with {count} micro-batches {grid.describe(rank)} needs about "
        f"{amount(total)}, and of its {amount(memory[rank])} only {amount(USABLE * memory[rank])} are counted on; use "
        "activations checkpoint, more parts or processes, a smaller model, or raise parallel.memory."
    )
