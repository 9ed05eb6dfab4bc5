"""How the processes share the work of a phase: by parts, replicated, sharded or as a pipeline.

A mode brings weights to where it needs them, builds the stages, links them for a segment, and hands back what they have
learned. The training loop (phase.py) is the same for all modes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np

from ..config import PhaseConfig, Segment, Turn
from ..data import Batches, ImageArray, MicroBatches, Points, Space, packet_sizes
from ..distributed import others_answer
from ..stage import BaseStage, Report
from ..storage import END_TO_END, part_stream
from ..stream import Discard, Links
from .actnorm_init import start
from .stages import StageBuilder
from .state import State
from .switch import join, split, take_back


def choose_mode(state: State, phase: PhaseConfig, plan: list[Turn], begin: int) -> "Mode":
    """The mode of a phase; `plan` and `begin` are its turns and the step of the run at which it begins."""
    if phase.schedule != "end_to_end":
        kind: type[Mode] = ByParts
    elif state.run.config.pipelined(state.run.world.grid.stages):
        kind = Pipelined
    else:
        kind = Sharded if state.run.config.end_to_end.engine == "fsdp" else Replicated
    return kind(state, StageBuilder(state, phase, plan, begin))


class Mode(ABC):
    """How a phase is trained.

    Attributes:
        names: of all stages of the run, by position, as metrics call them.
        keeps_record: whether this process writes the metrics of its stages.
        waits_for_others: whether processes average gradients within a tick.
        sharers: processes, or chains of them, that share every batch with this one.
        draws: whether this process draws images; another one draws labels alone.
        stages: position → stage of this process; empty before `enter`.
    """

    names: list[str]
    keeps_record: bool
    waits_for_others: bool
    sharers: int

    def __init__(self, state: State, builder: StageBuilder) -> None:
        self.state, self.world, self.builder = state, state.run.world, builder
        self.stages: Mapping[int, BaseStage] = {}
        self.draws = 0 in self.world.mine

    @abstractmethod
    def enter(self) -> None:
        """Brings the weights to where this mode trains them, and builds the stages; every process must call it."""

    @abstractmethod
    def links(self, segment: Segment, done: Sequence[int]) -> Links:
        """(position, inbox, outbox) of the stages of this process that take part in a segment; all must call it.

        Args:
            segment: about to be trained.
            done: how many of its batches each part has done already.
        """

    def tick(self, position: int, segment: Segment) -> Report:
        """One batch through one stage."""
        learn = position in segment.learners
        averages = learn and self.waits_for_others
        with others_answer(self.world.pulse, "gradients were not averaged") if averages else nullcontext():
            return self.stages[position].tick(learn)

    def collect(self) -> None:
        """Hands moments and averages back to the run, as weights are; every process must call it."""
        for stage in self.stages.values():
            self.state.weights.moments |= stage.update.moments()
            self.state.weights.averages |= stage.update.average.values

    @property
    def sizes(self) -> tuple[int, ...]:
        """Images per packet, for the packets of this process's share of a batch in turn."""
        config = self.state.run.config
        return packet_sizes(config.data.batch // self.sharers, config.parallel.packets)

    def _batches(self, first: int, share: int) -> Batches:
        """The images of this process from batch `first` of the run on: the share of this number of each batch."""
        run = self.state.run
        seed, data, shares = run.config.seed, run.config.data, (share, self.sharers)
        labels = run.images.labels.get("train"), data.label_dropout
        images: ImageArray = np.empty((len(run.images.train), 0), np.float32)
        space: Space = Points((0,))
        if self.draws:
            images, space = run.training_images, run.space
        return Batches(
            images, space, seed, data.batch, data.flip and self.draws, self.world.device, first, shares, *labels
        )


class ByParts(Mode):
    """Every process trains its own parts; replicas of a part average its gradients."""

    def __init__(self, state: State, builder: StageBuilder) -> None:
        super().__init__(state, builder)
        self.names = [part_stream(part) for part in range(state.run.config.cut.parts)]
        self.keeps_record = self.world.leads
        self.sharers = len(self.world.peers)
        self.waits_for_others = self.sharers > 1

    def enter(self) -> None:
        split(self.state)
        self.stages = {part: self._stage(part) for part in self.world.mine}

    def links(self, segment: Segment, done: Sequence[int]) -> Links:
        run, world = self.state.run, self.world
        place = world.peers.index(world.rank)
        head = MicroBatches(self._batches(segment.start + done[0], place), self.sizes)
        last, wire = max(segment.learners), run.config.parallel.wire
        return run.chain.open_links(head, self._packets, segment.steps, last, done, wire)

    @property
    def _packets(self) -> tuple[int, ...]:
        """Images per packet of a chain, for the packets of its batch in turn."""
        config, grid = self.state.run.config, self.world.grid
        units = packet_sizes(config.data.batch // (grid.replicas * grid.unit), config.parallel.packets)
        return tuple(grid.unit * count for count in units)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(self.world.grid.share(self.world.rank, images)) for images in self._packets)

    def _stage(self, part: int) -> BaseStage:
        stage = self.builder.stage(self.state.weights.slices[part], part, self.sizes)
        return self.builder.replayed(self.builder.averaged(stage, "replicas"), self.sharers)


class EndToEnd(Mode):
    """The whole model learns from every batch, in one stage per process, numbered 0."""

    waits_for_others = True

    def __init__(self, state: State, builder: StageBuilder) -> None:
        super().__init__(state, builder)
        self.names, self.keeps_record = [END_TO_END], self.world.rank == 0
        self.sharers, self.draws = self.world.size, True

    def links(self, segment: Segment, done: Sequence[int]) -> Links:
        return [(0, MicroBatches(self._batches(segment.start, self.world.rank), self.sizes), Discard())]

    def _start_all_parts(self) -> None:
        start(self.state, tuple(range(self.state.run.config.cut.parts)))


class Replicated(EndToEnd):
    """Every process holds the whole model and averages its gradients with the others (DDP)."""

    def enter(self) -> None:
        joined = join(self.state)
        self._start_all_parts()
        stage = self.builder.averaged(self.builder.stage(joined, 0, self.sizes), "everyone")
        self.stages = {0: self.builder.replayed(stage, self.sharers)}


class Sharded(EndToEnd):
    """Weights, gradients and moments are spread over all processes (FSDP); each also keeps slices of its own."""

    def enter(self) -> None:
        split(self.state)
        self._start_all_parts()
        self.stages = {0: self.builder.stage(join(self.state, sharded=True), 0, self.sizes)}

    def collect(self) -> None:
        update = self.stages[0].update
        with others_answer(self.world.pulse, "the weights were not put together"):
            take_back(self.state, update.moments(), update.average.values)


class Pipelined(EndToEnd):
    """Every process keeps its own parts; latents go forward and gradients back (1F1B)."""

    def __init__(self, state: State, builder: StageBuilder) -> None:
        super().__init__(state, builder)
        self.sharers, self.draws = self.world.grid.replicas, 0 in self.world.mine

    def enter(self) -> None:
        split(self.state)
        self.stages = {0: self.builder.pipeline_stage()}

    def links(self, segment: Segment, done: Sequence[int]) -> Links:
        return [(0, self._batches(segment.start, self.world.replica), Discard())]
