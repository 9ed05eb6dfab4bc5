"""A backend of torch.distributed with NCCL's manners on the CPU: it blocks, waits and dies as NCCL does, over gloo.

gloo connects at once, counts a time-out from when a process begins to wait, and notices a peer whose sockets have
closed. NCCL does none of these, so what holds over gloo need not hold over NCCL.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeflow.distributed import process_world

NAME = "nccl_manners"
_FOR_EVER = timedelta(days=1)
_POLL_S = 0.002
_DIES_AFTER_S = 1.0
_TAKEN = 1
"""Tag of the answer to what was sent."""


def install(eager: bool) -> None:
    """From now on this process opens its groups with NCCL's manners; the control group stays gloo.

    Args:
        eager: processes connect when a group is opened, as over torch's newer NCCL backend; else their first operation
            blocks each of them until the others begin theirs, as over the older one.
    """

    def create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
        return RudeGroup(store, rank, size, timeout, eager)

    dist.Backend.register_backend(NAME, create, devices=["cpu"])
    process_world.choose_backend = lambda config, device: NAME  # type: ignore[assignment]


def with_manners(init_method: str, eager: bool, work: Callable[..., Any], *arguments: Any) -> Any:
    """`work` as `in_processes` calls it, over NCCL's manners."""
    install(eager)
    return work(init_method, *arguments)


class RudeWork(dist.Work):
    """One operation of a group, on its way.

    Args:
        group: whose manners it has.
        act: the operation, over gloo.
        result: what its future holds.
        blocks: whether `wait()` waits: what a collective leaves is read by the CPU, which is not a stream.
    """

    def __init__(self, group: "RudeGroup", act: Callable[[], Any], result: Any, blocks: bool) -> None:
        super().__init__()
        self.group, self.act, self.result, self.blocks = group, act, result, blocks
        self.posted, self.done = time.monotonic(), threading.Event()
        self.future: torch.futures.Future[Any] = torch.futures.Future()

    def is_completed(self) -> bool:
        return self.done.is_set()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        if timeout:
            if not self.done.wait(self.posted + timeout.total_seconds() - time.monotonic()):
                threading.Timer(_DIES_AFTER_S, _abort).start()
                raise dist.DistBackendError(f"[Rank {self.group.rank()}] Work ran for {timeout} before timing out.")
        elif self.blocks:
            self.done.wait()
        return True

    def get_future(self) -> "torch.futures.Future[Any]":
        return self.future


def _abort() -> None:
    print("terminate called after throwing an instance of 'c10::DistBackendError'", file=sys.stderr, flush=True)
    os._exit(134)


class RudeGroup(dist.ProcessGroup):
    """A group over gloo with NCCL's manners.

    Its operations are carried out one after another: a send until it is received, and one with a process that is gone
    for ever. A time-out counts from when an operation was posted, and ends the process a second later, whatever it
    does.

    Attributes:
        stuck: no operation ends any more, in any group of this process.
    """

    stuck = False

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta, eager: bool) -> None:
        super().__init__(rank, size)
        self.store, self.timeout, self.eager = store, timeout, eager
        self.gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, _FOR_EVER)
        self.connected: set[str] = set()
        self.posted: queue.SimpleQueue[RudeWork] = queue.SimpleQueue()
        self.current: RudeWork | None = None
        threading.Thread(target=self._carry_out, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        if eager:
            self._connect(list(range(size)))

    def getBackendName(self) -> str:
        return NAME

    def _connect(self, ranks: list[int]) -> None:
        """Blocks the host until all of these have come."""
        name = "-".join(map(str, sorted(ranks)))
        if name not in self.connected:
            self.store.set(f"{name}/{self.rank()}", "")
            while not self.store.check([f"{name}/{rank}" for rank in ranks]):
                time.sleep(_POLL_S)
            self.connected.add(name)

    def _post(self, ranks: list[int], act: Callable[[], Any], result: Any = None, blocks: bool = False) -> RudeWork:
        if not self.eager:
            self._connect(ranks)
        work = RudeWork(self, act, result, blocks)
        self.posted.put(work)
        return work

    def _carry_out(self) -> None:
        while True:
            self.current = work = self.posted.get()
            try:
                work.act()
            except RuntimeError:
                threading.Event().wait()
            if RudeGroup.stuck:
                threading.Event().wait()
            work.done.set()
            self.current = None
            work.future.set_result(work.result)

    def _watch(self) -> None:
        while (work := self.current) is None or time.monotonic() < work.posted + self.timeout.total_seconds():
            time.sleep(0.1)
        time.sleep(_DIES_AFTER_S)
        _abort()

    # --- between two processes

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> RudeWork:
        def act() -> None:
            self.gloo.send(tensors, peer, tag).wait()
            self.gloo.recv([torch.empty(1)], peer, _TAKEN).wait()

        return self._post([self.rank(), peer], act)

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> RudeWork:
        (tensor,) = tensors
        tensor.view(torch.uint8).fill_(0xFF)  # for those who read too early
        came = torch.empty_like(tensor)

        def act() -> None:
            self.gloo.recv([came], peer, tag).wait()
            tensor.copy_(came)
            self.gloo.send([torch.zeros(1)], peer, _TAKEN).wait()

        return self._post([self.rank(), peer], act)

    # --- between all

    def _all(self, act: Callable[[], Any], result: Any) -> RudeWork:
        return self._post(list(range(self.size())), lambda: act().wait(), result, blocks=True)

    def allreduce(self, tensors: list[torch.Tensor], options: Any = None) -> RudeWork:
        return self._all(lambda: self.gloo.allreduce(tensors, options or dist.AllreduceOptions()), tensors)

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> RudeWork:
        return self._all(lambda: self.gloo.broadcast(tensors, options), tensors)

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], options: Any = None) -> RudeWork:
        return self._all(lambda: self.gloo.allgather(outputs, inputs, options or dist.AllgatherOptions()), outputs)
