"""One process lost, the others live: they keep their state and wait, and only what was lost is reloaded and caught up.

Backpropagation couples every process in every step; parts that are isolated depend on what crosses their borders only.
So a process that is lost while training by parts loads its snapshot of the segment's beginning and takes the segment's
packets again from the senders before it, which have kept them (stream/replay.py); what it makes of them again is not
sent to those who have it. Any agent that starts one process again without ending the others will do; torchrun does so
with one agent per process.
"""

import sys
from collections.abc import Callable

from ..config import Segment
from ..distributed import ResumePoint
from ..errors import LostError, NoReturnError
from ..stream import Links, ReplayOutbox, abort, with_replay
from .snapshot import keep_snapshot, load_snapshot
from .state import State


class NoRecovery:
    """A lost process ends the run.

    Attributes:
        done: how many batches of the segment each part had done when the processes last came together.
    """

    def __init__(self, state: State) -> None:
        self.state, self.world = state, state.run.world
        self.done = (0,) * len(self.world.owner)

    def train(self, attempt: Callable[[], bool]) -> bool:
        """Trains a segment: what `attempt` returns.

        Raises:
            LostError: another process is lost, for good.
        """
        return attempt()

    def take(self, links: Links) -> Links:
        """The links of an attempt, as it has to use them."""
        return links

    def check(self) -> None:
        """Raises the LostError that a send of the last batch met, if it has not been raised."""

    def keep(self, at: ResumePoint) -> None:
        """Keeps the beginning of the next segment, as the last thing done in this one; every process must call it."""


class Recovery(NoRecovery):
    """After a loss, all processes meet again and train what is left of the segment.

    Args:
        state: the run, at the beginning of the segment, or where this process has come back to it.
        at: the beginning of the segment.
    """

    def __init__(self, state: State, at: ResumePoint) -> None:
        super().__init__(state)
        self._at = at
        self._links: Links = []
        self._replays: dict[int, ReplayOutbox] = {}
        if not self.world.resume_point:
            keep_snapshot(state, at)

    def train(self, attempt: Callable[[], bool]) -> bool:
        learned = set(self.state.progress.learned)
        self.world.pulse.patient = True
        try:
            while True:
                try:
                    if self.world.resume_point:  # the others wait here for this process
                        self.world.resume_point = None
                        self._compare()
                    return attempt()
                except LostError as error:
                    lost = error
                self._meet_again(lost)
                if self.world.resume_point:  # they wait in the next segment: all have kept its beginning
                    return False
                self.state.progress.learned = set(learned)  # parts may have started for the next segment: they do again
        finally:
            self.world.pulse.patient = False

    def take(self, links: Links) -> Links:
        self._links = links
        self._links = with_replay(links, self._replays, self.done, self.state.run.config.parallel.packets)
        return self._links

    def check(self) -> None:
        for replay in self._replays.values():
            replay.check()

    def keep(self, at: ResumePoint) -> None:
        """No process begins the next segment before all have kept its beginning, so it is there that they meet again.

        A process that does not see all others do so may find itself behind one that did, never further than here.
        """
        keep_snapshot(self.state, at)
        self.world.barrier()

    def _meet_again(self, error: LostError) -> None:
        """Waits until the lost process is back; raises a LostError if it does not come, or all have to start again."""
        abort(self._links)
        while not isinstance(error, NoReturnError):
            error.__cause__ = error.__context__ = error.__traceback__ = None  # their frames hold transfers
            waits = f"all wait up to {self.world.config.rejoin_s:g} s for the process that is lost (parallel.rejoin_s)"
            line = f"{self.world.describe()}, step {self.world.pulse.step}: {error}; {waits}"
            if self.world.store.claim(line):
                print(f"pipeflow: {line}", file=sys.stderr, flush=True)
            try:
                self.world.rejoin(self._at)
                return None if self.world.resume_point else self._compare()
            except LostError as another:
                error = another
        raise error

    def _compare(self) -> None:
        """Tells the others how far this process is, and learns how far they are."""
        answers = self.world.gather(self.state.progress.step - self._at.step)
        if refusals := [answer for answer in answers if isinstance(answer, str)]:
            raise NoReturnError(refusals[0])
        self.done = tuple(answers[rank] for rank in self.world.owner)


def choose_recovery(state: State, phase: int, segment: Segment) -> NoRecovery:
    """What a loss means in a segment of a phase, numbered from 1: `parallel.rejoin_s` is for training by parts only."""
    world = state.run.world
    by_parts = state.run.config.phases[phase - 1].schedule != "end_to_end"
    if world.config.rejoin_s and world.size > 1 and by_parts:
        return Recovery(state, ResumePoint(phase, segment.start))
    return NoRecovery(state)


def recall(state: State) -> None:
    """Gives a fresh state what this process kept when the segment began in which the others wait.

    Raises:
        NoReturnError: there is nothing, or it is damaged; the others are told so.
    """
    world = state.run.world
    assert world.resume_point
    try:
        load_snapshot(state, world.resume_point)
    except ValueError as error:
        sentence = f"{world.describe()} cannot come back alone ({error}): all have to start again"
        world.gather(sentence)
        raise NoReturnError(sentence) from error
    world.pulse.step = state.progress.step
