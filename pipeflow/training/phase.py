"""One phase of a run: the training loop.

Its mode (modes.py) says which stages there are and what they are connected to; the loop is the same for all.
"""

from functools import partial

from ..config import Segment, multiples, phase_steps, segments, stops, turns
from ..distributed import ResumePoint, Stop, say
from ..errors import StopRequested
from ..stage import NORM
from ..stream import close
from .actnorm_init import start
from .modes import choose_mode
from .monitor import Monitor
from .pauses import Pauses
from .progress import Stopwatch
from .recovery import NoRecovery, choose_recovery
from .state import State


class Phase:
    """A phase about to be run, from its beginning or from where a checkpoint left it.

    Args:
        state: the run so far; updated as the phase goes on.
        number: of the phase in the run, from 1.
        begin: step of the run at which the phase begins.
    """

    def __init__(self, state: State, number: int, begin: int) -> None:
        self.state, self.number, self.begin = state, number, begin
        run, progress = state.run, state.progress
        self.world, self.progress = run.world, progress
        self.settings = run.config.phases[number - 1]
        images, batch = len(run.images.train), run.config.data.batch
        self.end = begin + phase_steps(self.settings, images, batch)
        self.evaluations = stops(images, batch, run.config.eval_every, begin, self.end)
        self.saves = multiples(run.config.checkpoint.every, begin, self.end)
        parts, self.later = run.config.cut.parts, run.config.phases[number:]
        plan = turns(self.settings, parts, images, batch)
        self.segments = segments(plan, begin, sorted({*self.evaluations, *self.saves}), progress.step)
        self.next: Segment | None = None  # the beginning of the next phase, if this one makes ready for it
        if self.later and "end_to_end" not in (self.settings.schedule, self.later[0].schedule):
            first = turns(self.later[0], parts, images, batch)[0]
            self.next = Segment(-1, first.learners, self.end, first.steps)
        self.mode = choose_mode(state, self.settings, plan, begin)

    def run(self, pauses: Pauses, ready: bool) -> bool:
        """Trains every segment, or what is left of them.

        Args:
            pauses: evaluates and saves between two segments.
            ready: whether the phase before made ready for this one.

        Returns:
            Whether this phase made ready for the next one.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
            LostError: a packet that was due did not come.
            StopRequested: the run was asked to stop, and has been saved.
        """
        watch = Stopwatch(self.progress)
        self.enter()
        plan = list(self.segments)
        if not ready:  # start asks all processes, and nothing recovers one that is lost in this one
            start(self.state, plan[0].learners)
        for segment, following in zip(plan, [*plan[1:], self.next], strict=True):
            watch.lap()
            recovery = choose_recovery(self.state, self.number, segment)
            attempt = partial(self.train, segment, following, recovery, pauses, watch)
            if recovery.train(attempt):
                raise StopRequested(self.progress.step, self.stop.cause())
        self.monitor.close()
        return self.next is not None

    def enter(self) -> None:
        """Takes moments, weights and records up for this phase; every process must call it."""
        weights, progress, settings = self.state.weights, self.progress, self.settings
        if progress.step == self.begin:  # what is usual is of a phase, as its learning rate is
            weights.moments = {name: slot for name, slot in weights.moments.items() if not name.startswith(f"{NORM}/")}
        if progress.step == self.begin and (settings.restart_optimizer or settings.optimizer != progress.moments_of):
            if weights.moments:
                say(self.world, f"moments start afresh: {progress.moments_of} before, {settings.optimizer} now")
            weights.moments, progress.moments_of = {}, settings.optimizer
        self.mode.enter()
        self.monitor = Monitor(self.state, self.mode, self.number, self.begin, self.end - self.begin)
        self.stop = Stop(self.world)

    def train(
        self, segment: Segment, following: Segment | None, recovery: NoRecovery, pauses: Pauses, watch: Stopwatch
    ) -> bool:
        """Trains what is left of a segment, evaluates and saves after it, and makes ready for the one that follows.

        Returns:
            Whether the run was asked to stop.
        """
        stopped = self._loop(segment, recovery, pauses)
        self.mode.collect()
        watch.lap(training=True)
        stopped = self._pause(pauses, watch, stopped)
        if following and not stopped:
            if following.turn != segment.turn:
                start(self.state, following.learners)
            recovery.keep(ResumePoint(self.number + (following.start == self.end), following.start))
        return stopped

    def _pause(self, pauses: Pauses, watch: Stopwatch, stopped: bool) -> bool:
        """Evaluates and saves, and ends the phase if it is over; whether the run has to stop here."""
        step = self.progress.step
        if step == self.end:
            pauses.evaluate()
            watch.lap()
            pauses.end_phase(self.number, self.end - self.begin)
            return bool(self.later and self.world.broadcast(self.stop.cause()))
        if step in self.evaluations and not stopped:
            pauses.evaluate()
        if step in self.saves or stopped:
            watch.lap()
            pauses.save()
        if step in self.evaluations and stopped:  # there may be little time left: what must not be lost comes first
            pauses.evaluate()
        return stopped

    def _loop(self, segment: Segment, recovery: NoRecovery, pauses: Pauses) -> bool:
        """What is left of a segment, batch by batch, through every stage of this process that takes part."""
        world, progress, last = self.world, self.progress, segment.start + segment.steps
        self.stop.reached = segment.start + max(recovery.done)
        links = recovery.take(self.mode.links(segment, recovery.done))
        for position, inbox, outbox in links:
            self.mode.stages[position].connect(inbox, outbox)
        while links and progress.step < last and not self.stop.after(progress.step):
            step = progress.step + 1
            self.stop.before(step)
            world.pulse.step = step
            for position, _, _ in links:
                self.monitor.take(position, step, segment.turn, self.mode.tick(position, segment))
            progress.step = step
            self.monitor.read()
            world.pulse.beat()
            recovery.check()
            pauses.check()
        self.monitor.flush()
        close(links, early=progress.step < last)
        # Parts behind the last learner had nothing to do: the head knows how many batches there were.
        stopped = self.stop.after(progress.step)
        progress.step, stopped = world.broadcast([progress.step, stopped])
        world.pulse.step = progress.step
        return bool(stopped)
