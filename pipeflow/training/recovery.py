"""One process lost, the others live: they keep their state and wait, and only what was lost is reloaded and caught up.

Backpropagation couples every process in every step; parts that are isolated depend on what crosses their borders only.
So whoever is lost while training by parts loads what it kept when the segment began, takes the segment's packets again
out of the backlogs of those before it, and what it makes of them again is not sent to those who have it. Any agent that
starts one process again without ending the others will do; torchrun does so with one agent a process.
"""

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from ..config import Segment
from ..distributed import ResumePoint
from ..errors import LostError, NoReturnError
from ..storage import write_whole
from ..stream import Backlog, Ends, ProcessOutbox
from .state import State


class Rejoin:
    """Around a segment of training by parts: after a loss, all processes come together again and go on.

    Without `parallel.rejoin_s` it does nothing, and a loss ends the run.

    Args:
        state: the run, at the beginning of the segment.
        phase: number of the phase.
        segment: about to be trained, or to be taken up again at `state.run.world.resume_point`.
        elapsed: seconds that the phase has taken so far.

    Attributes:
        done: how many batches of the segment each part had done when the processes last came together.
    """

    def __init__(self, state: State, phase: int, segment: Segment, elapsed: dict[str, float]) -> None:
        self.world = state.run.world
        self.done = (0,) * len(self.world.owner)
        self._waits_at = ResumePoint(phase, segment.start)
        self._backlogs: dict[int, Backlog] = {}
        by_parts = state.run.config.phases[phase - 1].schedule != "end_to_end"
        self._active = bool(self.world.config.rejoin_s) and self.world.size > 1 and by_parts
        if self._active and not self.world.resume_point:
            _keep(state, self._waits_at, elapsed)

    def __enter__(self) -> "Rejoin":
        self.world.pulse.patient = self._active
        if self.world.resume_point:
            self.world.resume_point = None
            try:
                self._compare(0)
            except LostError as error:
                lost = error
            else:
                return self
            self.again(lost, 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.world.pulse.patient = False

    def remember(self, ends: Ends) -> Ends:
        """Ends of links just laid → the same, with a backlog before other processes; sends again what was lost."""
        if not self._active:
            return ends
        remembered: Ends = []
        for place, inbox, outbox in ends:
            if isinstance(outbox, ProcessOutbox):
                outbox = self._backlogs.setdefault(place, Backlog()).open(outbox, self.done[place + 1])
            remembered.append((place, inbox, outbox))
        return remembered

    def check(self) -> None:
        """Raises the LostError that a send of the last batch met."""
        for backlog in self._backlogs.values():
            backlog.check()

    def again(self, error: LostError, done: int) -> None:
        """Waits until whoever was lost is back.

        Args:
            error: how this process noticed.
            done: batches of the segment that this process has done.

        Raises:
            LostError: it did not come back in time, or all have to start again.
        """
        if not self._active:
            raise error
        for backlog in self._backlogs.values():
            backlog.leave()
        while not isinstance(error, NoReturnError):
            error.__cause__ = error.__context__ = error.__traceback__ = None  # they hold links
            waits = f"all wait up to {self.world.config.rejoin_s:g} s for the process that is lost (parallel.rejoin_s)"
            line = f"{self.world.place()}, step {self.world.pulse.step}: {error}; {waits}"
            if self.world.store.claim(line):
                print(f"pipeflow: {line}", file=sys.stderr, flush=True)
            try:
                self.world.rejoin(self._waits_at)
                return self._compare(done)
            except LostError as another:
                error = another
        raise error

    def _compare(self, done: int) -> None:
        answers = self.world.gather(done)
        if refusals := [answer for answer in answers if isinstance(answer, str)]:
            raise NoReturnError(refusals[0])
        self.done = tuple(answers[rank] for rank in self.world.owner)


def recall(state: State) -> None:
    """Gives a fresh state what this process kept when the segment began in which the others stand.

    Raises:
        NoReturnError: there is nothing, or it is damaged; the others are told so.
    """
    assert state.run.world.resume_point
    file = _file(state, state.run.world.resume_point)
    try:
        with safe_open(file, "pt") as kept:
            told = json.loads(kept.metadata()["state"])
            tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # the reader has an exception class of its own
        sentence = f"{state.run.world.place()} cannot come back alone ({file}: {error}): all have to start again"
        state.run.world.gather(sentence)
        raise NoReturnError(sentence) from error
    for part in state.run.world.mine:
        state.weights.slices[part].load_global_state(tensors)
    state.weights.take_slots({name: tensor for name, tensor in tensors.items() if "/" in name})
    state.progress.learned = set(told.pop("learned"))
    for name, value in told.items():
        setattr(state.progress, name, value)
    state.run.world.pulse.step = state.progress.step


def forget(state: State) -> None:
    """Removes what this process has kept: the run is over, or begins another life, maybe in another cut."""
    for file in _kept(state):
        file.unlink()


def _keep(state: State, at: ResumePoint, elapsed: dict[str, float]) -> None:
    """Writes this process's parts, as they are, for the process that may take its place."""
    tensors: dict[str, Any] = {}
    for part in state.run.world.mine:
        tensors |= state.weights.part_state(part)
    told = {name: getattr(state.progress, name) for name in ("step", "begun", "ended", "moments_of")}
    told |= {"learned": sorted(state.progress.learned), "elapsed": elapsed}
    file = _file(state, at)
    file.parent.mkdir(exist_ok=True)
    copies = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(file, save(copies, {"state": json.dumps(told)}))
    # One process may stand in this segment while another is still in the last moment of the one before.
    for old in _kept(state)[:-2]:
        old.unlink()


def _kept(state: State) -> list[Path]:
    """What this process has kept, in order."""
    files = state.run.directory.rejoin.glob(f"rank-{state.run.world.rank}-*.safetensors")
    return sorted(files, key=lambda file: [int(number) for number in file.stem.split("-")[1:]])


def _file(state: State, at: ResumePoint) -> Path:
    return state.run.directory.rejoin / f"rank-{state.run.world.rank}-{at.phase}-{at.step}.safetensors"
