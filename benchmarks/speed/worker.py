"""One process of a speed benchmark: carries out the orders of `benchmarks.speed.runner` together with the others."""

import ctypes
import gc
import json
import math
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.timing import now
from benchmarks.lib.workload import Repeated, Workload
from benchmarks.speed.approaches import Approach, make_approach
from pipeflow.distributed import ParallelConfig, open_world, prepare_process
from pipeflow.distributed.socket_counters import sockets
from pipeflow.stream import Discard


class Worker:
    """This process, in the world of all."""

    def __init__(self, workload: Workload, threads: int) -> None:
        # A world has at least a part per process; where the workload has no cut, nobody looks at the parts.
        parts = max(len(workload.cut) + 1, int(os.environ["WORLD_SIZE"]))
        config = ParallelConfig(backend="gloo", depth=workload.depth, threads=threads)
        self.workload = workload
        self.world = open_world(config, parts, workload.device)
        prepare_process(threads, self.world.device)
        self._groups: dict[str, Any] = {}
        self._known: dict[str, Approach] = {}
        self._control = self._control_connections()
        warm_up()
        self._base = free_memory(self.world.device)

    def carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        """Measures; returns what all processes found."""
        workload = replace(self.workload, batch=order["batch"])
        key = json.dumps([order["name"], order["setting"], order["batch"]])
        if key not in self._known:
            self._known[key] = make_approach(order["name"], workload, self.world, self._groups, order["setting"])
        approach = self._known[key]
        first = self._steps(approach, 0, 1, 0)
        steps = max(order["least"], math.ceil(order["seconds"] / first["step_s"]))
        if not approach.after and steps == 1:  # a step that begins and ends with nothing on its way is a measurement
            return {"setting": order["setting"], **first}
        return {"setting": order["setting"], **self._steps(approach, approach.warm, steps, approach.after)}

    def _steps(self, approach: Approach, warm: int, steps: int, after: int) -> dict[str, Any]:
        """Measures `steps` steps, after `warm` and before `after` that are not measured."""
        count = warm + steps + after
        free_memory(self.world.device)
        before = self._received()
        approach.begin(count)
        self.world.barrier()
        marks = []
        cpu_start = time.process_time()
        for number in range(count + 1):
            marks.append(now(self.world.device) if number in (warm, warm + steps) else time.perf_counter())
            if number < count:
                approach.step()
        approach.end()
        cpu_s = time.process_time() - cpu_start
        self.world.barrier()
        moved = {key: received - before.get(key, 0) for key, received in self._received().items()}
        peak = peak_memory(self.world.device)
        here = {
            "step_s": (marks[warm + steps] - marks[warm]) / steps,
            "spent": {kind: seconds / count for kind, seconds in approach.spent.items()},
            "received": self._by_peer(moved, count),
            "cpu_s": cpu_s / count,
            "peak_bytes": peak,
            "training_bytes": peak - self._base,
        }
        everyone = self.world.gather(here)
        step_s = everyone[approach.clock_rank]["step_s"]
        return {
            "steps": steps,
            "step_s": step_s,
            "images_per_s": approach.workload.batch / step_s,
            "step_s_by_rank": [rank["step_s"] for rank in everyone],
            **{kind: [rank[kind] for rank in everyone] for kind in ("spent", "cpu_s", "peak_bytes", "training_bytes")},
            "borders": [
                {
                    "forward": everyone[rank + 1]["received"].get(str(rank), 0),
                    "backward": everyone[rank]["received"].get(str(rank + 1), 0),
                }
                for rank in range(self.world.size - 1)
            ],
            "all": sum(sum(rank["received"].values()) for rank in everyone),
        }

    def _received(self) -> dict[str, int]:
        """Bytes received so far, by connection, without those of barriers."""
        return {key: received for key, received in connections().items() if key not in self._control}

    def _control_connections(self) -> set[str]:
        """The connections of barriers: those that carry something when nothing else happens."""
        before = connections()
        for size in (0, 100, 100_000):
            self.world.gather_bytes(bytes(size))
        self.world.barrier()
        return {key for key, received in connections().items() if received != before.get(key)}

    def _by_peer(self, moved: dict[str, int], count: int) -> dict[int, float]:
        """Bytes per step, by the rank that sent them: the one whose end of the connection mirrors this one."""
        owner = {
            key: rank
            for rank, keys in enumerate(self.world.gather(list(moved)))
            for key in keys
            if rank != self.world.rank
        }
        found: dict[int, float] = {}
        for key, received in moved.items():
            mirror = " ".join(reversed(key.split(" ")))
            if mirror in owner and received:
                found[owner[mirror]] = found.get(owner[mirror], 0) + received / count
        return found


def connections() -> dict[str, int]:
    """Connection, as "<this end> <other end>" → bytes received over it."""
    return {
        f"{socket.own[0]}:{socket.own[1]} {socket.peer[0]}:{socket.peer[1]}": socket.received for socket in sockets()
    }


def warm_up() -> None:
    """One step of a very small flow, so that code that is loaded on first use is there."""
    workload = Workload(levels=1, steps=1, hidden=4, size=4, batch=2)
    stage = workload.stage(workload.build()[1])
    stage.connect(Repeated(workload.batches().recv()), Discard())
    stage.tick()


def free_memory(device: torch.device) -> int:
    """Hands free memory back and forgets the peak; returns the bytes in use: resident ones, or those on the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5): resets VmHWM
    return memory_status("VmRSS")


def peak_memory(device: torch.device) -> int:
    """The largest number of bytes in use since `free_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_status("VmHWM")


def memory_status(name: str) -> int:
    """A size that Linux keeps of this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, name
    return 1024 * int(found[1])


def main() -> None:
    """Carries out orders until the last one."""
    given = json.loads(sys.argv[1])
    worker = Worker(Workload(**{**given, "cut": tuple(given["cut"])}), int(sys.argv[2]))
    while True:
        line = sys.stdin.readline() if worker.world.rank == 0 else ""
        order = worker.world.broadcast(json.loads(line) if line else {"order": "end"})
        answer = {} if order["order"] == "end" else worker.carry_out(order)
        if worker.world.rank == 0:
            print(json.dumps(answer), flush=True)
        if order["order"] == "end":
            return


if __name__ == "__main__":
    main()
