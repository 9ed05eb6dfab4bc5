"""What a process is doing right now, for others to judge whether it lives.

A process that computes, one that waits for a neighbour and one that hangs look alike from outside. So the loop counts
what it does here, whoever waits says for whom, and the watchdog shows it to the others at every heartbeat.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .key_value import KeyValueStore

EVERYONE = -1
"""In place of a rank: this process waits for all others."""


class SignOfLife(NamedTuple):
    """A heartbeat of another process: its number, and what `Pulse` said then."""

    number: int
    step: int
    beats: int
    waits_for: int | None


class Pulse:
    """Written by the loop, read by the watchdog.

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

    def show(self, store: KeyValueStore, rank: int, number: int) -> None:
        """Shows the others heartbeat `number` of this process, whose rank it is."""
        store.set(_key(rank), SignOfLife(number, self.step, self.beats, self.waits_for))


def last_sign(store: KeyValueStore, rank: int) -> SignOfLife | None:
    """The last heartbeat of a process; None if there was none, or the process has ended well."""
    sign = store.get(_key(rank))
    return SignOfLife(*sign) if sign else None


def end_signs(store: KeyValueStore, rank: int) -> None:
    """This process ends well: it is done, not lost."""
    store.set(_key(rank), None)


def _key(rank: int) -> str:
    return f"alive/{rank}"
