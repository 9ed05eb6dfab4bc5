"""What the heartbeats tell of a run: a process is silent for too long, or does nothing, or all wait for each other."""

import time

from .heartbeat import EVERYONE, SignOfLife, last_sign
from .world import World

MISSED = 5
"""Heartbeats in a row without which a process counts as lost."""


class Suspicion:
    """What this process has seen of the others' heartbeats.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.others = [rank for rank in range(world.size) if rank != world.rank]
        self.forget()

    def forget(self) -> None:
        """Begins anew, after this process was stopped itself and could see nothing."""
        self._seen: dict[int, tuple[SignOfLife, float]] = {}
        self._active: dict[int, tuple[int, float]] = {}
        self._together: tuple[dict[int, int], float] = {}, time.monotonic()

    def look(self, patience: float = 0) -> str:
        """What is wrong with another process, or with all together; empty if nothing is.

        Args:
            patience: seconds that it may take longer than usual.

        Raises:
            LostError: the store does not answer.
        """
        now, config = time.monotonic(), self.world.config
        found = {rank: last_sign(self.world.store, rank) for rank in range(self.world.size)}
        signs = {rank: sign for rank, sign in found.items() if sign}
        for rank in self.others:
            if (sign := signs.get(rank)) is None:
                continue
            if rank not in self._seen or self._seen[rank][0] != sign:
                self._seen[rank] = (sign, now)
            # Before the first batch there may be a data set to be decoded, for as long as it takes.
            excused = sign.waits_for is not None or not sign.step
            if excused or rank not in self._active or self._active[rank][0] != sign.beats:
                self._active[rank] = (sign.beats, now)
            where = f"{self.world.describe(rank)}, last heard of at step {sign.step}"
            silent, idle = now - self._seen[rank][1], now - self._active[rank][1]
            if silent > MISSED * config.heartbeat_s + patience:
                return f"{where}: no sign of life for {silent:.1f} s: killed, stopped, or its host is lost"
            if idle > config.timeout_s + 2 * config.heartbeat_s + patience:
                return f"{where}: hangs, nothing was done for {idle:.0f} s (parallel.timeout_s)"
        return self._all_wait(signs, now, patience)

    def _all_wait(self, signs: dict[int, SignOfLife], now: float, patience: float) -> str:
        """A sentence where all have waited for everyone for too long, and none did anything meanwhile; else empty.

        gloo bounds such a wait. NCCL's collectives return at once, and what waits for their result has no bound.
        """
        config, beats = self.world.config, {rank: sign.beats for rank, sign in signs.items()}
        if beats != self._together[0] or any(sign.waits_for != EVERYONE for sign in signs.values()):
            self._together = beats, now
        idle = now - self._together[1]
        if not signs or idle <= config.timeout_s + 2 * config.heartbeat_s + patience:
            return ""
        last = min(signs, key=lambda rank: signs[rank].step)
        behind = f"{self.world.describe(last)}, step {signs[last].step}, or another process of the same step"
        return f"{behind}: all wait for each other, nothing was done for {idle:.0f} s (parallel.timeout_s)"
