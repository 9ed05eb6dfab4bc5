"""A fresh name for every meeting of the processes, in a store that remembers earlier ones.

Workers that torchrun restarts may find the store of their predecessors, with the addresses of sockets that are closed.
A count of restarts would not tell them apart: agents on different hosts count differently. So each process sets an id
that nobody has set before, and all take the name that rank 0 gives the meeting once every process has acknowledged
exactly these ids.
"""

import json
import time
import uuid
from datetime import timedelta
from typing import Protocol

_POLL_S = 0.01


class Store(Protocol):
    """What is needed of `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


def meet(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """The name of this meeting, the same in all processes that are there now.

    Raises:
        TimeoutError: not all came in time.
    """
    keys = [f"hello/{other}" for other in range(size)]
    own_id = uuid.uuid4().hex
    name: str = ""
    store.set(keys[rank], own_id)
    ids: list[str] = []
    until = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < until:
        if rank == 0 and store.check(keys):
            now = [store.get(key).decode() for key in keys]
            if now != ids:
                ids, name = now, uuid.uuid4().hex
                store.set("meeting", json.dumps([name, *ids]))
            if store.check([f"heard/{name}/{other}" for other in range(1, size)]):
                store.set(f"begin/{name}", "")
                return name
        elif rank and store.check(["meeting"]):
            name, *ids = json.loads(store.get("meeting"))
            if len(ids) == size and ids[rank] == own_id:
                store.set(f"heard/{name}/{rank}", "")
                if store.check([f"begin/{name}"]):
                    return name
        time.sleep(_POLL_S)
    raise TimeoutError(f"not all of {size} processes came within {timeout.total_seconds():.0f} s")
