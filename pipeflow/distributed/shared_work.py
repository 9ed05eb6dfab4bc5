"""Work whose errors all processes share, so that all end for one reason and none waits for one that has failed."""

import json
from collections.abc import Callable
from typing import TypeVar

from .world import World

T = TypeVar("T")


def on_rank_0(world: World, work: Callable[[], T]) -> T:
    """What rank 0 finds, in every process; what is wrong on rank 0 is everyone's error. Every process must call it.

    Args:
        world: the processes.
        work: returns what JSON can say.
    """
    found: dict[str, T] = {}
    fault = ""
    if world.rank == 0:
        try:
            found["found"] = work()
        except ValueError as error:
            fault = str(error)
    told = json.loads(world.exchange(json.dumps(found or {"fault": fault}).encode())[0])
    if "fault" in told:
        raise ValueError(told["fault"])
    return found["found"] if found else told["found"]


def everywhere(world: World, work: Callable[[], T]) -> T:
    """Every process does the work; what is wrong in one of them is everyone's error. Every process must call it."""
    done: list[T] = []
    fault = ""
    try:
        done.append(work())
    except ValueError as error:
        fault = str(error)
    if faults := [text.decode() for text in world.exchange(fault.encode()) if text]:
        raise ValueError(faults[0])
    return done[0]
