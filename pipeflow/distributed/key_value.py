"""Short values under names, which every process can set and read at any time, from any thread.

A collective operation needs all processes at once; what one of them has to say while the others compute goes here.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Store

from ..errors import LostError

_REPORTED = "fault"


class KeyValueStore:
    """Values that JSON can hold, by key.

    Args:
        store: that all processes share; in a world of one process, one in its memory.
        rank: of this process.

    Raises:
        LostError: from every method but `claim`: the store is out of reach, since the process that held it is gone.
    """

    def __init__(self, store: Store | None = None, rank: int = 0) -> None:
        self._store, self._rank = store or HashStore(), rank
        self._alone = threading.Lock()  # taken by the thread that reports for want of the store

    def set(self, key: str, value: Any) -> None:
        """Sets a value; None takes it away."""
        with _reached():
            self._store.set(key, "" if value is None else json.dumps(value))

    def get(self, key: str) -> Any:
        """The latest value of a key, None if there is none."""
        with _reached():
            text = self._store.get(key) if self._store.check([key]) else b""
        return json.loads(text) if text else None

    def claim(self, line: str) -> bool:
        """Claims to report what ended the run; True for the first process to do so.

        Without the store every process is the first, once: its loop and its watchdog may both come here.
        """
        claim = f"{self._rank} {line}"
        try:
            return bool(self._store.compare_set(_REPORTED, "", claim).decode() == claim)
        except RuntimeError:
            return self._alone.acquire(blocking=False)

    def claimed(self) -> bool:
        """Whether a process has reported what ended the run."""
        with _reached():
            return self._store.check([_REPORTED]) and bool(self._store.get(_REPORTED))

    def withdraw_claim(self) -> None:
        """The run goes on."""
        with _reached():
            self._store.set(_REPORTED, "")


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostError("the store where the processes meet is gone") from error
