"""What a process is doing right now, for others to judge whether it lives.

A process that computes, one that waits for a neighbour and one that hangs look alike from outside. So the loop counts
what it does here, and whoever waits says for whom.
"""

from collections.abc import Iterator
from contextlib import contextmanager

EVERYONE = -1


class Pulse:
    """Written by the loop, read by the thread that tells the other processes.

    Attributes:
        step: batches drawn at the head so far.
        beats: grows whenever something was done.
        waits_for: the rank that this process waits for, `EVERYONE`, or None while it computes.
        patient: whether a process that is lost now may come back.
    """

    def __init__(self) -> None:
        self.step = 0
        self.beats = 0
        self.waits_for: int | None = None
        self.patient = False

    def beat(self) -> None:
        """Something was done."""
        self.beats += 1

    @contextmanager
    def waiting(self, rank: int) -> Iterator[None]:
        """While the block runs, this process waits for another; after an error it goes on doing so."""
        before, self.waits_for = self.waits_for, rank
        yield
        self.waits_for = before
        self.beats += 1
