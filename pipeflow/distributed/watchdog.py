"""A thread beside the loop: it tells the others that this process lives, and looks whether they do.

The loop itself cannot: it is inside a wait or a computation. torchrun sees a process that ends, not one that hangs or
was stopped, and a signal handler of Python's runs only when the loop comes back from its wait.
"""

import os
import select
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Any

from ..errors import LostError
from .graceful_stop import ask
from .heartbeat import EVERYONE
from .world import World

MISSED = 5
_ASKING = (signal.SIGTERM, signal.SIGUSR1)


class Watch:
    """Runs beside the loop, from `with` to its end.

    SIGTERM and SIGUSR1 ask all processes to stop at the next batch. A process that gives no sign of life for `MISSED`
    heartbeats, or computes without getting anything done for longer than a packet may take, ends the run, by force.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self.world, self.config = world, world.config
        self.others = [rank for rank in range(world.size) if rank != world.rank]
        self._number = 0
        self._seen: dict[int, tuple[int, float]] = {}
        self._active: dict[int, tuple[int, float]] = {}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._rounds = 0
        self._guard = threading.Thread(target=self._stand_by, name="guard", daemon=True)
        self._ended = threading.Event()
        self._handlers: dict[signal.Signals, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            # The thread hears of them by the pipe; handlers are there so that they do not end the process.
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in _ASKING}
        self._beat()
        self._thread.start()
        if self.others:
            self._guard.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        os.write(self._write, b"\0")
        self._thread.join()
        if error is None:
            self.world.store.set(f"alive/{self.world.rank}", None)  # done, not lost
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def blame(self, rank: int | None) -> int | None:
        """Who is behind it that `rank` did not answer, as far as it can be found out.

        A process that itself waits for another is not to blame. Where no rank is given, it is one that gives no sign of
        life any more, or else one that is behind in its work.

        Returns:
            A rank, or None.
        """
        if rank is None:
            return self._silent_or_behind()
        for _ in self.others:
            waits_for = self.last(rank).get("waits_for")
            if waits_for == EVERYONE:
                found = self._silent_or_behind()
                return rank if found is None else found
            if waits_for is None or waits_for == self.world.rank:
                break
            rank = waits_for
        return rank

    def _silent_or_behind(self) -> int | None:
        before = {rank: self.last(rank) for rank in self.others}
        until = time.monotonic() + 2.5 * self.config.heartbeat_s
        while time.monotonic() < until:
            if self._told():
                return None
            time.sleep(self.config.heartbeat_s / 10)
        after = {rank: self.last(rank) for rank in self.others}
        if silent := [rank for rank in self.others if before[rank] == after[rank]]:
            return silent[0]
        behind = min(self.others, key=lambda rank: after[rank]["step"])
        return behind if after[behind]["step"] < self.world.pulse.step else None

    def last(self, rank: int) -> dict[str, Any]:
        """The last sign of life of a process: "step", "beats", "waits_for"; empty if there was none."""
        return self.world.store.get(f"alive/{rank}") or {}

    @property
    def _patience_s(self) -> float:
        return MISSED * self.config.heartbeat_s

    def _run(self) -> None:
        told_since = None
        before = time.monotonic()
        while not self._ended.is_set():
            self._rounds += 1
            if select.select([self._read], [], [], self.config.heartbeat_s)[0]:
                self._heard(os.read(self._read, 64))
            now = time.monotonic()
            if now - before > 2 * self.config.heartbeat_s:
                self._seen, self._active = {}, {}  # this process itself was stopped: it has no right to judge
            before = now
            try:
                self._beat()
                if self._ended.is_set() or not self.others:
                    continue
                if self.world.pulse.patient:  # whoever is lost may come back; the loop waits for it, not for ever
                    self._seen, self._active, told_since = {}, {}, None
                    continue
                fault = self._look(now)
                told_since = told_since or (now if self._told() else None)
            except LostError as error:
                fault = f"{self.world.place()}, step {self.world.pulse.step}: {error}"
            if fault:
                if self.world.store.claim(fault):
                    print(f"pipeflow: {fault}", file=sys.stderr, flush=True)
                os._exit(1)
            if told_since and now - told_since > 2 * self.config.heartbeat_s + 1:
                os._exit(1)  # another process has said why; the loop is still inside a wait

    def _stand_by(self) -> None:
        """Ends this process where the store is out of reach: a call over a cable that was cut never returns."""
        missed, before = 0, -1
        while not self._ended.wait(self.config.heartbeat_s):
            missed = missed + 1 if self._rounds == before else 0
            before = self._rounds
            if missed > MISSED:
                where = f"{self.world.place()}, step {self.world.pulse.step}"
                what = (
                    f"the store where the processes meet has not answered for {missed * self.config.heartbeat_s:.1f} s"
                )
                print(f"pipeflow: {where}: {what}: this host is cut off", file=sys.stderr, flush=True)
                os._exit(1)

    def _heard(self, numbers: bytes) -> None:
        for number in numbers:
            if number in _ASKING:
                ask(self.world, signal.Signals(number).name)

    def _beat(self) -> None:
        self._number += 1
        pulse = self.world.pulse
        sign = {"n": self._number, "step": pulse.step, "beats": pulse.beats, "waits_for": pulse.waits_for}
        self.world.store.set(f"alive/{self.world.rank}", sign)

    def _look(self, now: float) -> str:
        """What is wrong with another process; empty if nothing is."""
        for rank in self.others:
            if not (sign := self.last(rank)):
                continue
            if rank not in self._seen or self._seen[rank][0] != sign["n"]:
                self._seen[rank] = (sign["n"], now)
            # Before the first batch there may be a data set to be decoded, for as long as it takes.
            waits = sign["waits_for"] is not None or not sign["step"]
            if waits or rank not in self._active or self._active[rank][0] != sign["beats"]:
                self._active[rank] = (sign["beats"], now)
            where = f"{self.world.place(rank)}, last heard of at step {sign['step']}"
            if self._silent_s(rank) > self._patience_s:
                return (
                    f"{where}: no sign of life for {self._silent_s(rank):.1f} s: killed, stopped, or its host is lost"
                )
            idle = now - self._active[rank][1]
            if idle > self.config.timeout_s + 2 * self.config.heartbeat_s:
                return f"{where}: hangs, nothing was done for {idle:.0f} s (parallel.timeout_s)"
        return ""

    def _silent_s(self, rank: int) -> float:
        return time.monotonic() - self._seen[rank][1] if rank in self._seen else 0.0

    def _told(self) -> bool:
        return self.world.store.claimed()
