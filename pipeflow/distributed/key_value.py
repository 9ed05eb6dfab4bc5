"""Short values under names, which every process can set and read at any time, from any thread.

A collective operation needs all processes at once; what one of them has to say while the others compute goes here.
"""

import json
from typing import Any, Protocol

from ..errors import LostError

_ENDED = "fault"


class KeyValueStore:
    """JSON values by key; here those of one process alone."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def set(self, key: str, value: Any) -> None:
        """Sets a value; None takes it away."""
        self._write(key, "" if value is None else json.dumps(value))

    def get(self, key: str) -> Any:
        """The latest value of a key, None if there is none."""
        text = self._read(key)
        return json.loads(text) if text else None

    def claim(self, line: str) -> bool:
        """True for the one process that is the first to say what ended the run."""
        return True

    def claimed(self) -> bool:
        """Whether a process has said what ended the run."""
        return bool(self._read(_ENDED))

    def withdraw_claim(self) -> None:
        """The run goes on."""
        self._write(_ENDED, "")

    def _write(self, key: str, text: str) -> None:
        self._texts[key] = text

    def _read(self, key: str) -> str:
        return self._texts.get(key, "")


class TextStore(Protocol):
    """What is needed of `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class SharedKeyValueStore(KeyValueStore):
    """Values that all processes see.

    Args:
        store: where the texts are kept.
        rank: of this process.

    Raises:
        LostError: from every method but `claim`: the store is out of reach, since it is gone with its process.
    """

    def __init__(self, store: TextStore, rank: int) -> None:
        self._store, self._rank = store, rank

    def claim(self, line: str) -> bool:
        claim = f"{self._rank} {line}"
        try:
            return self._store.compare_set(_ENDED, "", claim).decode() == claim
        except RuntimeError:  # nobody else can say it any more
            return True

    def _write(self, key: str, text: str) -> None:
        try:
            self._store.set(key, text)
        except RuntimeError as error:
            raise LostError("the store where the processes meet is gone") from error

    def _read(self, key: str) -> str:
        try:
            return self._store.get(key).decode() if self._store.check([key]) else ""
        except RuntimeError as error:
            raise LostError("the store where the processes meet is gone") from error
