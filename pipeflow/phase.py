"""One phase of a run: its turns, carried out by stages.

By parts and end to end differ in which stages there are and what they are connected to, and in nothing else: the loop
below is the only training loop.
"""

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from .average import Average
from .board import Board
from .chain import Ends, close
from .data import Batches
from .join import join, part_again
from .link import Discard
from .metrics import Progress, Stream, say
from .objective import Truncated
from .optimizer import load_moments, make_optimizer, named_moments
from .pulse import EVERYONE
from .schedule import PhaseConfig, Stretch, lessons, multiples, phase_steps, stops, stretches, turns
from .stage import Report, Stage
from .start import start
from .state import State
from .stop import Stop, StopRequested


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
        if self.joined:
            join(state)
        elif state.whole is not None:
            part_again(state)
        names = ["end_to_end"] if self.joined else [f"part-{part + 1}" for part in range(state.config.cut.parts)]
        self._stages = {0: self._whole_stage()} if self.joined else {p: self._stage(p) for p in state.world.mine}
        mine = ([0] if state.world.rank == 0 else []) if self.joined else list(state.world.mine)
        self._streams = {place: Stream(directory / "metrics" / f"{names[place]}.jsonl") for place in mine}
        self._boards = {place: Board(directory, names[place], state.step) for place in mine}
        self._names = names
        self._progress = Progress(state.world, names, self.end - begin, batch)
        self._stop = Stop(state.world)
        self._skipped = dict.fromkeys(self._stages, 0)
        self._last_finite = dict.fromkeys(self._stages, float("nan"))

    def run(
        self, evaluate: Callable[[], None], save: Callable[[dict[str, float]], None], check: Callable[[], None]
    ) -> None:
        """Carries out every turn, or what is left of them.

        Args:
            evaluate: called between two stretches, where an evaluation is due, and at the end of the phase.
            save: called between two stretches, where a checkpoint is due, with the time that the phase has taken.
            check: called behind every batch; raises what went wrong beside the loop.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
            LostError: a packet that was due did not come.
            StopRequested: the run was asked to stop, and has been saved.
        """
        state = self.state
        for stretch in stretches(self.plan, self.begin, sorted({*self.evaluations, *self.saves}), state.step):
            began = time.perf_counter()
            start(state, stretch.learners)
            stopped = self._train(stretch, check)
            self._train_s += time.perf_counter() - began
            for stage in self._stages.values():
                state.moments |= named_moments(stage.optimizer, stage.named)
                state.averages |= stage.average.values
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

    def _train(self, stretch: Stretch, check: Callable[[], None]) -> bool:
        """The loop: `steps` batches through every stage of this process that takes part; True if it was cut short."""
        state, world = self.state, self.state.world
        for place, inbox, outbox in (ends := self._connect(stretch)):
            self._stages[place].connect(inbox, outbox)
        last = stretch.start + stretch.steps
        stopped = False
        while ends and state.step < last and not stopped:
            self._stop.before(state.step + 1)
            state.step = world.pulse.step = state.step + 1
            for place, _, _ in ends:
                learn = self.joined or place in stretch.learners
                # End to end, gradients are averaged within the tick: whoever is in it may be waiting for the others.
                with world.pulse.waiting(EVERYONE) if self.joined else nullcontext():
                    report = self._stages[place].tick(learn)
                self._record(place, stretch.turn, learn, report)
            world.pulse.beat()
            check()
            stopped = self._stop.after(state.step)
        close(ends, early=state.step < last)
        for place, stream in self._streams.items():
            stream.flush()
            self._boards[place].flush()
        # Parts behind the last learner had nothing to do; the count of batches is everyone's, and the head has it.
        state.step, stopped = json.loads(world.exchange(json.dumps([state.step, stopped]).encode())[0])
        world.pulse.step = state.step
        return bool(stopped)

    def _connect(self, stretch: Stretch) -> Ends:
        state, world, data = self.state, self.state.world, self.state.config.data
        shard = (world.rank, world.size) if self.joined else (0, 1)
        images, pixels, seed = state.images.train, state.pixels, state.config.seed
        head = Batches(images, pixels, seed, data.batch, data.flip, world.device, stretch.start, shard)
        if self.joined:
            return [(0, head, Discard())]
        return state.chain.lay(head, data.batch, stretch.steps, max(stretch.learners))

    def _stage(self, part: int) -> Stage:
        return self._make_stage(self.state.chain.slices[part], part)

    def _whole_stage(self) -> Stage:
        assert self.state.whole is not None
        stage = self._make_stage(self.state.whole, 0)
        start(self.state, tuple(range(self.state.config.cut.parts)))
        stage.model = self.state.world.wrap(self.state.whole)
        # DDP lays out its buckets after its first backward pass: this one is thrown away, so that every step of the
        # run, resumed or not, adds its gradients up in the same order.
        head = self._connect(Stretch(0, (0,), self.state.step, 1))[0][1]
        stage.model(head.recv())[1].mean().backward()
        stage.optimizer.zero_grad()
        return stage

    def _make_stage(self, truncated: Truncated, place: int) -> Stage:
        config, state = self.config, self.state
        lr = config.lr_of(place)
        named = truncated.named_global_parameters()
        optimizer = make_optimizer(config.optimizer, named, lr, config.weight_decay)
        load_moments(optimizer, named, state.moments)
        average = Average(named, state.config.ema, state.averages)
        stage = Stage(truncated, optimizer, lr, config.warmup_steps, config.clip, state.pixels.dims, average)
        stage.attempts = lessons(self.plan, place, state.step - self.begin)
        return stage

    def _record(self, place: int, turn: int, learn: bool, report: Report) -> None:
        state, done = self.state, self.state.step - self.begin
        if place in self._streams:
            self._progress.report(self._names[place], done, report)
            self._streams[place].write(
                step=state.step, phase=self.number, turn=turn + 1, time=time.time(), learn=learn, **vars(report)
            )
            self._boards[place].tick(state.step, report)
        if not learn:
            return
        if not report.bad:
            self._skipped[place], self._last_finite[place] = 0, report.bits_per_dim
            return
        self._skipped[place] += 1
        if self._skipped[place] >= state.config.max_bad_steps:
            raise FloatingPointError(
                f"{self._names[place].replace('_', ' ').replace('-', ' ')} (rank {state.world.rank}) stops at step "
                f"{state.step}: its loss or gradient was not finite {self._skipped[place]} times in a row "
                f"(max_bad_steps). Its last finite loss was {self._last_finite[place]:.4f} bits/dim; try a lower lr, a "
                "warm-up or clipping."
            )
