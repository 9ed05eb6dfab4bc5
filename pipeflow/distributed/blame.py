"""Who is to blame where a process did not answer: the one that noticed names the one that it waited for, no more."""

import time

from .heartbeat import EVERYONE, last_sign
from .world import World


def blame(world: World, rank: int | None) -> int | None:
    """The process behind it that `rank` did not answer, as far as it can be found out.

    A process that itself waits for another is not to blame. Where no rank is given, it is one that gives no sign of
    life any more, or else one that is behind in its work.

    Raises:
        LostError: the store does not answer.
    """
    if rank is None:
        return _silent_or_behind(world)
    for _ in range(world.size - 1):
        sign = last_sign(world.store, rank)
        if sign and sign.waits_for == EVERYONE:
            found = _silent_or_behind(world)
            return rank if found is None else found
        if sign is None or sign.waits_for in (None, world.rank):
            break
        rank = sign.waits_for
    return rank


def _silent_or_behind(world: World) -> int | None:
    """A process without a new sign of life, or the one that has done the fewest batches, fewer than this one."""
    others, heartbeat_s = [rank for rank in range(world.size) if rank != world.rank], world.config.heartbeat_s
    before = {rank: last_sign(world.store, rank) for rank in others}
    until = time.monotonic() + 2.5 * heartbeat_s
    while time.monotonic() < until:
        if world.store.claimed():  # another process has said it meanwhile
            return None
        time.sleep(heartbeat_s / 10)
    after = {rank: last_sign(world.store, rank) for rank in others}
    if silent := [rank for rank in others if before[rank] == after[rank]]:
        return silent[0]
    steps = {rank: sign.step for rank, sign in after.items() if sign}
    behind = min(steps, key=lambda rank: steps[rank], default=None)
    return behind if behind is not None and steps[behind] < world.pulse.step else None
