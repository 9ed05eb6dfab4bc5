"""One phase of a run: its turns, carried out by stages.

By parts and end to end differ in which stages there are and what they are connected to, and in nothing else: the loop
below is the only training loop.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..config import PhaseConfig, Segment, lessons, micro_batches, multiples, phase_steps, segments, stops, turns
from ..data import Batches
from ..distributed import EVERYONE, Engine, Stop, say
from ..errors import LostError, StopRequested
from ..flow import Packet
from ..model import NAMES, Drift, Truncated, bits_per_dim, make_passage
from ..stage import (
    Average,
    CudaRecorder,
    EagerStep,
    NamedParameters,
    PipelineModule,
    PipelineStage,
    RecordedStep,
    Report,
    Stage,
    Update,
    load_moments,
    make_optimizer,
)
from ..storage import Stream, largest
from ..stream import Discard, Ends, close
from .actnorm_init import start
from .progress import Progress
from .recovery import Rejoin
from .state import State
from .switch import join, part_again, take_back
from .tensorboard import Board


class Phase:
    """A phase about to be run, from its beginning or from where a checkpoint left it.

    Args:
        state: the run so far; updated as the phase goes on.
        config: schedule, length, learning rates.
        number: of the phase in the run, from 1.
        begin: step of the run at which the phase begins.
        directory: of the run, for metrics.
    """

    def __init__(self, state: State, config: PhaseConfig, number: int, begin: int, directory: Path) -> None:
        self.state, self.config, self.number, self.begin = state, config, number, begin
        self.joined = config.schedule == "end_to_end"
        images, batch = len(state.images.train), state.config.data.batch
        self.plan = turns(config, state.config.cut.parts, images, batch)
        self.end = begin + phase_steps(config, images, batch)
        self.evaluations = stops(images, batch, state.config.eval_every, begin, self.end)
        self.saves = multiples(state.config.checkpoint.every, begin, self.end)
        self._began, self._train_s = time.perf_counter(), 0.0
        if state.step == begin and (config.restart_optimizer or config.optimizer != state.moments_of):
            if state.moments:
                say(state.world, f"moments start afresh: {state.moments_of} before, {config.optimizer} now")
            state.moments, state.moments_of = {}, config.optimizer
        self.pipelined = self.joined and state.config.pipelined(state.world.grid.stages)
        self.sharded = self.joined and state.config.end_to_end.engine == "fsdp"
        if self.sharded:
            if state.whole is not None:
                part_again(state)
            start(state, tuple(range(state.config.cut.parts)))
        if self.joined and not self.pipelined:
            join(state, self.sharded)
        elif state.whole is not None:
            part_again(state)
        names = ["end_to_end"] if self.joined else [f"part-{part + 1}" for part in range(state.config.cut.parts)]
        self._stages = self._make_stages()
        mine = [0] if self.joined else list(state.world.mine)
        if state.world.rank if self.joined else state.world.replica:
            mine = []  # the first replica keeps the record
        self._metrics = directory / "metrics"
        self._streams = {place: Stream(self._metrics / f"{names[place]}.jsonl") for place in mine}
        self._boards = {place: Board(directory / "tensorboard" / names[place], state.step) for place in mine}
        self._names = names
        self._progress = Progress(state.world, names, self.end - begin, batch)
        self._stop = Stop(state.world)
        self._skipped = dict.fromkeys(self._stages, 0)
        self._last_finite = dict.fromkeys(self._stages, float("nan"))
        self._unread: deque[tuple[int, int, int, float, Report]] = deque()
        # A GPU has its next batches while this one's loss is on its way; the CPU is done when it returns.
        self._lag = 2 * len(self._stages) if state.world.device.type == "cuda" else 0

    def run(
        self, evaluate: Callable[[], None], save: Callable[[dict[str, float]], None], check: Callable[[], None]
    ) -> None:
        """Carries out every turn, or what is left of them.

        Args:
            evaluate: called between two segments, where an evaluation is due, and at the end of the phase.
            save: called between two segments, where a checkpoint is due, with the time that the phase has taken.
            check: called behind every batch; raises what went wrong beside the loop.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
            LostError: a packet that was due did not come.
            StopRequested: the run was asked to stop, and has been saved.
        """
        state = self.state
        for segment in segments(self.plan, self.begin, sorted({*self.evaluations, *self.saves}), state.step):
            began = time.perf_counter()
            start(state, segment.learners)
            stopped = self._train(segment, check)
            self._train_s += time.perf_counter() - began
            for stage in self._stages.values():
                moments, averages = stage.update.moments(), stage.update.average.values
                if self.sharded:
                    take_back(state, moments, averages)
                else:
                    state.moments |= moments
                    state.averages |= averages
            if state.step == self.end:
                break
            due = state.step in self.evaluations
            if due and not stopped:
                evaluate()
            if state.step in self.saves or stopped:
                save(self.elapsed())
            if due and stopped:  # there may be little time left: what must not be lost comes first
                evaluate()
            if stopped:
                raise StopRequested(state.step, self._stop.cause())
        self._progress.close()
        for place, stream in self._streams.items():
            stream.close()
            self._boards[place].close()
        evaluate()

    def elapsed(self) -> dict[str, float]:
        """Seconds that the phase has taken: "seconds" in all, "train_seconds" without evaluations."""
        before, seconds = self.state.elapsed, time.perf_counter() - self._began
        return {"seconds": before["seconds"] + seconds, "train_seconds": before["train_seconds"] + self._train_s}

    def drift(self) -> dict[str, dict[str, float]]:
        """For "part-1", … or "end_to_end": how far inverted inputs have lain from what entered, at most, so far.

        As the streams tell, so that it does not matter who wrote them; every process must call it. Empty where
        activations are not inverted.
        """
        if self.state.config.activations != "invert":
            return {}
        names = [self._names[place] for place in self._streams]
        found = {name: largest(self._metrics / f"{name}.jsonl", self.number, NAMES) for name in names}
        everyone = self.state.world.exchange(json.dumps(found).encode())
        return {name: figures for text in everyone for name, figures in json.loads(text).items() if figures}

    def _train(self, segment: Segment, check: Callable[[], None]) -> bool:
        """A segment, from end to end of it in spite of whom it loses on the way; True if it was cut short."""
        with Rejoin(self.state, self.number, segment, self.elapsed()) as rejoin:
            while True:
                try:
                    return self._loop(segment, rejoin, check)
                except LostError as error:
                    lost = error
                # Sockets close when nobody holds on to them, and by that the others notice.
                for stage in self._stages.values():
                    stage.disconnect()
                rejoin.again(lost, self.state.step - segment.start)

    def _loop(self, segment: Segment, rejoin: Rejoin, check: Callable[[], None]) -> bool:
        """The loop: what is left of a segment, through every stage of this process that takes part."""
        state, world, last = self.state, self.state.world, segment.start + segment.steps
        self._stop.reached = segment.start + max(rejoin.done)
        for place, inbox, outbox in (ends := rejoin.remember(self._connect(segment, rejoin.done))):
            self._stages[place].connect(inbox, outbox)
        while ends and state.step < last and not self._stop.after(state.step):
            self._stop.before(step := state.step + 1)
            world.pulse.step = step
            for place, _, _ in ends:
                learn = self.joined or place in segment.learners
                # Where gradients are averaged, that is within the tick: whoever is in it may be waiting for others.
                averaged = self.joined or (learn and world.grid.replicas > 1)
                with world.pulse.waiting(EVERYONE) if averaged else nullcontext():
                    report = self._stages[place].tick(learn)
                self._unread.append((place, step, segment.turn, time.time(), report))
            state.step = step
            self._record(self._lag)
            world.pulse.beat()
            rejoin.check()
            check()
        self._record(0)
        close(ends, early=state.step < last)
        for place, stream in self._streams.items():
            stream.flush()
            self._boards[place].flush()
        # Parts behind the last learner had nothing to do; the count of batches is everyone's, and the head has it.
        stopped = self._stop.after(state.step)
        state.step, stopped = json.loads(world.exchange(json.dumps([state.step, stopped]).encode())[0])
        world.pulse.step = state.step
        return bool(stopped)

    def _connect(self, segment: Segment, done: Sequence[int] = (0,)) -> Ends:
        state, world, data = self.state, self.state.world, self.state.config.data
        shard = (world.rank, world.size)
        if self.pipelined or not self.joined:
            shard = (world.replica, world.grid.replicas)
        images, pixels, seed = state.training, state.pixels, state.config.seed
        head = Batches(images, pixels, seed, data.batch, data.flip, world.device, segment.start + done[0], shard)
        if self.joined:
            return [(0, head, Discard())]
        batch, wire = data.batch // world.grid.replicas, state.config.parallel.wire
        return state.chain.lay(head, batch, segment.steps, max(segment.learners), done, wire)

    def _make_stages(self) -> Mapping[int, Stage | PipelineStage]:
        if self.pipelined:
            return {0: self._pipelined_stage()}
        return {0: self._whole_stage()} if self.joined else {part: self._stage(part) for part in self.state.world.mine}

    def _stage(self, part: int) -> Stage:
        stage = self._averaged(self._make_stage(self.state.slices[part], part), self.state.world.wrap_part)
        return self._recorded(stage)

    def _whole_stage(self) -> Stage:
        state = self.state
        assert state.whole is not None
        stage = self._make_stage(state.whole, 0)
        start(state, tuple(range(state.config.cut.parts)))
        return stage if self.sharded else self._recorded(self._averaged(stage, state.world.wrap))

    def _recorded(self, stage: Stage) -> Stage:
        """Its kernels are replayed, where that is asked for and no other process has a say in its gradients."""
        world = self.state.world
        alone = world.size == 1 if self.joined else world.grid.replicas == 1
        if self.state.config.cuda_graphs and alone:
            stage.step = RecordedStep(stage.step, stage.update.optimizer, CudaRecorder(world.device))
        return stage

    def _pipelined_stage(self) -> PipelineStage:
        state, grid = self.state, self.state.world.grid
        pieces = [state.slices[part] for part in state.world.mine]
        for piece in pieces:
            piece.part.passage = make_passage(state.config.activations, state.config.compile)
        images = state.config.data.batch // grid.replicas
        pieces_of_batch = micro_batches(state.config.end_to_end.micro_batches, images, grid.stages)
        module = PipelineModule(pieces, pieces[-1].prior_name == "prior")
        engine = Engine(
            state.world,
            module,
            module.events,
            partial(bits_per_dim, dims=state.pixels.dims),
            images,
            pieces_of_batch,
        )
        return PipelineStage(engine, self._update(module.named_global_parameters(), 0))

    def _update(self, named: NamedParameters, place: int) -> Update:
        """An update that goes on from the run's moments and averages."""
        state, config = self.state, self.config
        optimizer = make_optimizer(config.optimizer, named, config.lr_of(place), config.weight_decay)
        load_moments(optimizer, named, state.moments)
        average = Average(named, state.config.ema, state.averages)
        attempts = lessons(self.plan, place, state.step - self.begin)
        return Update(named, optimizer, config.lr_of(place), config.warmup_steps, config.clip, average, attempts)

    def _averaged(self, stage: Stage, wrap: Callable[[nn.Module], nn.Module]) -> Stage:
        """DDP lays out its buckets after its first backward pass: one is thrown away.

        So every step of the run, resumed or not, adds its gradients up in the same order.
        """
        step = stage.step
        assert isinstance(step, EagerStep)
        if (wrapped := wrap(step.model)) is step.model:
            return stage
        step.model = wrapped
        device = self.state.world.device
        blank = Packet(torch.zeros(1, *stage.truncated.part.event_in, device=device), torch.zeros(1, device=device))
        with self.state.world.pulse.waiting(EVERYONE):
            wrapped(blank)[1].mean().backward()
        stage.update.optimizer.zero_grad()
        return stage

    def _make_stage(self, truncated: Truncated, place: int) -> Stage:
        state = self.state
        drift = Drift() if state.config.activations == "invert" else None
        truncated.part.passage = make_passage(state.config.activations, state.config.compile, drift)
        return Stage(truncated, self._update(truncated.named_global_parameters(), place), state.pixels.dims, drift)

    def _record(self, left: int) -> None:
        """Reads the reports of all batches but the newest `left`."""
        while len(self._unread) > left:
            self._read(*self._unread.popleft())

    def _read(self, place: int, step: int, turn: int, when: float, report: Report) -> None:
        if place in self._streams:
            self._progress.report(self._names[place], step - self.begin, report)
            self._streams[place].write(step=step, phase=self.number, turn=turn + 1, time=when, **report.as_dict())
            self._boards[place].tick(step, report)
        if not report.learn:
            return
        if not report.bad:
            self._skipped[place], self._last_finite[place] = 0, report.bits_per_dim
            return
        self._skipped[place] += 1
        if self._skipped[place] >= self.state.config.max_bad_steps:
            name = self._names[place].replace("_", " ").replace("-", " ")
            raise FloatingPointError(
                f"{name} (rank {self.state.world.rank}) stops at step {step}: its loss or gradient was not finite "
                f"{self._skipped[place]} times in a row (max_bad_steps). Its last finite loss was "
                f"{self._last_finite[place]:.4f} bits/dim; try a lower lr, a warm-up or clipping."
            )
