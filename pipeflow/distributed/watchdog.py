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
from .heartbeat import end_signs
from .suspicion import MISSED, Suspicion
from .world import World

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Watch:
    """Runs beside the loop, from `with` to its end.

    SIGTERM and SIGUSR1 ask all processes to stop at the next batch. A process that gives no sign of life for `MISSED`
    heartbeats, or computes without getting anything done for longer than a packet may take, ends the run, by force; so
    does it if all processes wait for each other for so long.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self.world, self._heartbeat_s = world, world.config.heartbeat_s
        self._suspicion = Suspicion(world)
        self._heartbeats, self._rounds = 0, 0
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._ended, self._store_left = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch_others, name="watch", daemon=True)
        self._guard = threading.Thread(target=self._watch_the_store, name="guard", daemon=True)
        self._handlers: dict[signal.Signals, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            # The thread hears of them by the pipe; handlers are there so that they do not end the process.
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in _STOP_SIGNALS}
        self._beat()
        self._thread.start()
        if self._suspicion.others:
            self._guard.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        os.write(self._write, b"\0")
        try:
            self._thread.join()
            if error is None:
                end_signs(self.world.store, self.world.rank)
        finally:
            self._store_left.set()  # not before: both of them may wait for the store
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _watch_others(self) -> None:
        claimed_since = None  # since when another process has said what ended the run
        before = time.monotonic()
        while not self._ended.is_set():
            self._rounds += 1
            if select.select([self._read], [], [], self._heartbeat_s)[0]:
                self._take_signals(os.read(self._read, 64))
            now = time.monotonic()
            if now - before > 2 * self._heartbeat_s:
                self._suspicion.forget()  # this process itself was stopped: it has no right to judge
            before = now
            try:
                self._beat()
                if self._ended.is_set() or not self._suspicion.others:
                    continue
                patient = self.world.pulse.patient  # a lost process may come back, and the loop waits for it
                fault = self._suspicion.look(self.world.config.rejoin_s if patient else 0)
                claimed = not patient and self.world.store.claimed()
                claimed_since = (claimed_since or now) if claimed else None
            except LostError as error:
                fault = f"{self._where()}: {error}"
            if fault:
                if self.world.store.claim(fault):
                    print(f"pipeflow: {fault}", file=sys.stderr, flush=True)
                os._exit(1)
            if claimed_since and now - claimed_since > 2 * self._heartbeat_s + 1:
                os._exit(1)  # the loop is still inside a wait

    def _watch_the_store(self) -> None:
        """Ends this process where the store is out of reach: a call over a cable that was cut never returns."""
        missed, before = 0, -1
        while not self._store_left.wait(self._heartbeat_s):
            missed = missed + 1 if self._rounds == before else 0
            before = self._rounds
            if missed > MISSED:
                silent = f"the store where the processes meet has not answered for {missed * self._heartbeat_s:.1f} s"
                print(f"pipeflow: {self._where()}: {silent}: this host is cut off", file=sys.stderr, flush=True)
                os._exit(1)

    def _take_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in _STOP_SIGNALS:
                ask(self.world, signal.Signals(number).name)

    def _beat(self) -> None:
        self._heartbeats += 1
        self.world.pulse.show(self.world.store, self.world.rank, self._heartbeats)

    def _where(self) -> str:
        return f"{self.world.describe()}, step {self.world.pulse.step}"
