"""One phase of a run: its turns, carried out by stages.

By parts and end to end differ in which stages there are and what they are connected to, and in nothing else: the loop
below is the only training loop.
"""

import time
from collections.abc import Callable
from pathlib import Path

from .data import Batches
from .join import join, part_again
from .link import Discard, Inbox, Outbox
from .metrics import Progress, Stream
from .objective import Truncated
from .optimizer import load_moments, make_optimizer, named_moments
from .schedule import PhaseConfig, Stretch, phase_steps, stops, stretches, turns
from .stage import Report, Stage
from .start import start
from .state import State

Ticks = list[tuple[int, Inbox, Outbox]]


class Phase:
    """A phase about to be run.

    Args:
        state: the run so far; updated as the phase goes on.
        config: schedule, length, learning rates.
        number: of the phase in the run, from 1.
        directory: of the run, for metrics.
    """

    def __init__(self, state: State, config: PhaseConfig, number: int, directory: Path) -> None:
        self.state, self.config, self.number = state, config, number
        self.joined = config.schedule == "end_to_end"
        images, batch = len(state.images.train), state.config.data.batch
        self.plan = turns(config, state.config.cut.parts, images, batch)
        self.begin, self.steps = state.step, phase_steps(config, images, batch)
        self.pauses = stops(images, batch, state.config.eval_every, self.begin, self.begin + self.steps)
        self.train_seconds = 0.0
        if self.joined:
            join(state)
        elif state.whole is not None:
            part_again(state)
        names = ["end_to_end"] if self.joined else [f"part-{part + 1}" for part in range(state.config.cut.parts)]
        self._stages = {0: self._whole_stage()} if self.joined else {p: self._stage(p) for p in state.world.mine}
        mine = ([0] if state.world.rank == 0 else []) if self.joined else list(state.world.mine)
        self._streams = {place: Stream(directory / "metrics" / f"{names[place]}.jsonl") for place in mine}
        self._names = names
        self._progress = Progress(state.world, names, self.steps, batch)
        self._skipped = dict.fromkeys(self._stages, 0)
        self._last_finite = dict.fromkeys(self._stages, float("nan"))

    def run(self, evaluate: Callable[[], None]) -> None:
        """Carries out every turn.

        Args:
            evaluate: called between two stretches, where an evaluation is due, and at the end of the phase.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
            ConnectionError: a packet that was due did not come.
        """
        for stretch in stretches(self.plan, self.begin, self.pauses):
            began = time.perf_counter()
            start(self.state, stretch.learners)
            self._train(stretch)
            self.train_seconds += time.perf_counter() - began
            if self.state.step in self.pauses and self.state.step < self.begin + self.steps:
                evaluate()
        for stage in self._stages.values():
            self.state.moments |= named_moments(stage.optimizer, stage.named)
        self.state.moments_of = self.config.optimizer
        self._progress.close()
        for stream in self._streams.values():
            stream.close()
        evaluate()

    def _train(self, stretch: Stretch) -> None:
        """The loop: `steps` batches through every stage of this process that takes part."""
        for place, inbox, outbox in (ends := self._connect(stretch)):
            self._stages[place].connect(inbox, outbox)
        for _ in range(stretch.steps):
            self.state.step += 1
            for place, _, _ in ends:
                learn = self.joined or place in stretch.learners
                self._record(place, stretch.turn, learn, self._stages[place].tick(learn))
        for _, _, outbox in ends:
            outbox.close()
        # Parts behind the last learner had nothing to do; the count of batches is everyone's.
        self.state.step = stretch.start + stretch.steps
        for stream in self._streams.values():
            stream.flush()

    def _connect(self, stretch: Stretch) -> Ticks:
        state, world, data = self.state, self.state.world, self.state.config.data
        shard = (world.rank, world.size) if self.joined else (0, 1)
        images, pixels, seed = state.images.train, state.pixels, state.config.seed
        head = Batches(images, pixels, seed, data.batch, data.flip, world.device, stretch.start, shard)
        if self.joined:
            return [(0, head, Discard())]
        return state.chain.lay(head, data.batch, stretch.steps, max(stretch.learners))

    def _stage(self, part: int) -> Stage:
        return self._make_stage(self.state.chain.slices[part], self.config.lr_of(part))

    def _whole_stage(self) -> Stage:
        assert self.state.whole is not None
        stage = self._make_stage(self.state.whole, self.config.lr_of(0))
        start(self.state, tuple(range(self.state.config.cut.parts)))
        stage.model = self.state.world.wrap(self.state.whole)
        # DDP lays out its buckets after its first backward pass: this one is thrown away, so that every step of the
        # run, resumed or not, adds its gradients up in the same order.
        head = self._connect(Stretch(0, (0,), self.state.step, 1))[0][1]
        stage.model(head.recv())[1].mean().backward()
        stage.optimizer.zero_grad()
        return stage

    def _make_stage(self, truncated: Truncated, lr: float) -> Stage:
        named = truncated.named_global_parameters()
        optimizer = make_optimizer(self.config.optimizer, named, lr, self.config.weight_decay)
        if self.config.optimizer == self.state.moments_of and not self.config.restart_optimizer:
            load_moments(optimizer, named, self.state.moments)
        return Stage(truncated, optimizer, lr, self.config.warmup_steps, self.config.clip, self.state.pixels.dims)

    def _record(self, place: int, turn: int, learn: bool, report: Report) -> None:
        state, done = self.state, self.state.step - self.begin
        if place in self._streams:
            self._progress.report(self._names[place], done, report)
            self._streams[place].write(
                step=state.step, phase=self.number, turn=turn + 1, time=time.time(), learn=learn, **vars(report)
            )
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
