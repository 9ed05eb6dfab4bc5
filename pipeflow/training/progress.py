"""How far a run is: all that a checkpoint's manifest stores of it besides settings and tensors."""

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: batches drawn at the head so far.
        begun: the step at which the first phase began; not 0 where other settings came before these.
        ended: for each phase that has ended, what `result.json` will say of it.
        elapsed: what the phase in progress has taken: "seconds" in all, "train_seconds" without evaluations and saves.
        learned: positions of the parts that have started to learn.
        moments_of: the kind of optimizer that the moments belong to.
    """

    step: int = 0
    begun: int = 0
    ended: list[dict[str, Any]] = field(default_factory=list)
    elapsed: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "train_seconds": 0.0})
    learned: set[int] = field(default_factory=set)
    moments_of: str | None = None


class Stopwatch:
    """Adds the time that passes to `Progress.elapsed`.

    Args:
        progress: of a run whose phase begins or goes on now.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._last = progress, time.perf_counter()

    def lap(self, training: bool = False) -> None:
        """Adds the seconds since the last call, which the run has spent training or otherwise."""
        now = time.perf_counter()
        self._progress.elapsed["seconds"] += now - self._last
        self._progress.elapsed["train_seconds"] += training * (now - self._last)
        self._last = now
