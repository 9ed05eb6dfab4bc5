"""Watches the stages of one process while they train: metrics, TensorBoard, the terminal, bad updates.

Every process writes the metrics of its own stages. On a GPU the figures of a batch are read a few batches later, so
that the device never waits for the host.
"""

import time
from collections import deque
from contextlib import nullcontext
from typing import NamedTuple

from ..distributed import others_answer
from ..stage import Report
from ..storage import Stream
from .modes import Mode
from .progress_bars import ProgressBars
from .state import State
from .tensorboard import Board


class _Tick(NamedTuple):
    position: int
    step: int
    turn: int
    time: float
    report: Report


class Monitor:
    """The record of a phase in this process.

    Args:
        state: the run.
        mode: of the phase, entered.
        number: of the phase in the run, from 1.
        begin: step of the run at which the phase begins.
        steps: length of the phase.

    Attributes:
        lag: how many of the newest reports are not read yet; 0 on the CPU, which is done with a batch when it returns.
    """

    def __init__(self, state: State, mode: Mode, number: int, begin: int, steps: int) -> None:
        run, step = state.run, state.progress.step
        self._world, self._max_bad_steps = run.world, run.config.max_bad_steps
        self._averaged = mode.waits_for_others
        self._names, self._number, self._begin = mode.names, number, begin
        recorded = mode.stages if mode.keeps_record else ()
        self._streams = {at: Stream(run.directory.stream(mode.names[at])) for at in recorded}
        self._boards = {at: Board(run.directory.tensorboard(mode.names[at]), step) for at in recorded}
        self._bars = ProgressBars(run.world, mode.names, steps, run.config.data.batch)
        self._unread: deque[_Tick] = deque()
        self._bad_in_a_row = dict.fromkeys(mode.stages, 0)
        self._last_finite = dict.fromkeys(mode.stages, float("nan"))
        self.lag = 2 * len(mode.stages) if run.world.device.type == "cuda" else 0

    def take(self, position: int, step: int, turn: int, report: Report) -> None:
        """Takes in the report of one stage on one batch, to be read later."""
        self._unread.append(_Tick(position, step, turn, time.time(), report))

    def read(self) -> None:
        """Reads all reports but the newest `lag`.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        while len(self._unread) > self.lag:
            self._read(self._unread.popleft())

    def flush(self) -> None:
        """Reads all reports, and makes what was written visible to readers."""
        while self._unread:
            self._read(self._unread.popleft())
        for position, stream in self._streams.items():
            stream.flush()
            self._boards[position].flush()

    def close(self) -> None:
        """Ends the record; it must have been flushed."""
        self._bars.close()
        for position, stream in self._streams.items():
            stream.close()
            self._boards[position].close()

    def _read(self, tick: _Tick) -> None:
        position, step, turn, when, report = tick
        # NCCL's collectives return at once: what they wait for, the host waits for here.
        pulse, late = self._world.pulse, self._averaged and self.lag
        with others_answer(pulse, "gradients were not averaged") if late else nullcontext():
            report.figures.read()
        if position in self._streams:
            self._bars.report(self._names[position], step - self._begin, report)
            self._streams[position].write(step=step, phase=self._number, turn=turn + 1, time=when, **report.as_dict())
            self._boards[position].tick(step, report)
        if report.learn:
            self._count_bad(position, step, report)

    def _count_bad(self, position: int, step: int, report: Report) -> None:
        if not report.bad:
            self._bad_in_a_row[position], self._last_finite[position] = 0, report.bits_per_dim
            return
        self._bad_in_a_row[position] += 1
        if self._bad_in_a_row[position] >= self._max_bad_steps:
            name = self._names[position].replace("_", " ").replace("-", " ")
            raise FloatingPointError(
                f"{name} (rank {self._world.rank}) stops at step {step}: its loss or gradient was not finite "
                f"{self._bad_in_a_row[position]} times in a row (max_bad_steps). Its last finite loss was "
                f"{self._last_finite[position]:.4f} bits/dim; try a lower lr, a warm-up or clipping."
            )
