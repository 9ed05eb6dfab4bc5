"""Starts the processes of a race, and asks them for one measurement after another.

Everything that is compared is measured in the same processes, in turns: contestant after contestant, round after round,
so that whatever else the machine does meets all of them. The driver talks to rank 0 through its standard input and
output, a JSON object a line, and rank 0 hands each order on to the others; so the driver can print as it goes, and
change the network in between.

    with Race(course, processes=2) as race:
        found = race.measure("1f1b", {"micro": 4}, seconds=5.0)
"""

import ctypes
import gc
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from course import Course
from hosts import Hosts

PACKAGE = Path(__file__).parents[1]


_PATIENCE_S = 900.0  # an order that takes longer hangs


class BrokenError(RuntimeError):
    """A contestant did not run: what the process that failed first said."""


class Race:
    """Processes that wait for orders.

    Args:
        course: the model and the data.
        processes: how many; as many as parts, or a course without a cut.
        hosts: network namespaces to put them into, the first half into the first one; this machine's loopback if None.
        threads: that each process computes with.
    """

    def __init__(self, course: Course, processes: int, hosts: Hosts | None = None, threads: int = 1) -> None:
        self.course, self.processes = course, processes
        self._errors = [tempfile.TemporaryFile("w+") for _ in range(processes)]  # noqa: SIM115 - closed on exit
        first, port = (hosts[0].address, 29400) if hosts else ("127.0.0.1", _free_port())
        self._workers = []
        for rank in range(processes):
            host = hosts[rank * 2 // processes] if hosts else None
            env = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")]),
                "OMP_NUM_THREADS": str(threads),
                "GLOO_SOCKET_IFNAME": host.device if host else "lo",
                "RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": first,
                "MASTER_PORT": str(port),
            }
            command = [
                *(host.prefix if host else []),
                sys.executable,
                __file__,
                json.dumps(asdict(course)),
                str(threads),
            ]
            pipe = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            self._workers.append(
                subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=self._errors[rank], text=True)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._ask({"order": "end"})
        finally:
            for worker in self._workers:
                try:
                    worker.wait(20 if kind is None else 0)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()
            for errors in self._errors:
                errors.close()

    def measure(
        self, name: str, setting: dict[str, Any], seconds: float, batch: int | None = None, least: int = 1
    ) -> dict[str, Any]:
        """One contestant, for about so many seconds.

        Args:
            name: of the contestant.
            setting: of it, as `rivals.make` takes it.
            seconds: of the steps that are measured; known from the first ones, which are not.
            batch: images an optimizer step, if not the course's own.
            least: steps that are measured even if they take longer.

        Returns:
            "images_per_s", "step_s" and "steps", by the clock of the process that finishes a batch; by rank
            "step_s_by_rank", "spent": seconds a step that went into "compute", "wait" and "send", "cpu_s": of
            the processor, all threads together, a step, "peak_bytes": the
            process's largest resident size during the steps, "training_bytes": that without what it was before there
            was any contestant;
            "borders": bytes a step that crossed between each two neighbours, "forward" and "backward"; "all": bytes
            a step between any two processes.

        Raises:
            BrokenError: it does not run; nor does anything else in these processes from now on.
        """
        course = replace(self.course, batch=batch or self.course.batch)
        order = {"order": "measure", "name": name, "setting": setting, "seconds": seconds, "least": least}
        return self._ask({**order, "batch": course.batch})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        pipes = self._workers[0]
        assert pipes.stdin and pipes.stdout
        overdue = threading.Timer(_PATIENCE_S, lambda: [worker.kill() for worker in self._workers])
        overdue.start()
        try:
            pipes.stdin.write(json.dumps(order) + "\n")
            pipes.stdin.flush()
            line = pipes.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            overdue.cancel()
        if not line:
            raise BrokenError(self._fault())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _fault(self) -> str:
        """The last line of the process that failed for a reason of its own, or of the first that failed."""
        last = []
        for worker, errors in zip(self._workers, self._errors, strict=True):
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
            errors.seek(0)
            lines = [
                line.strip() for line in errors.read().splitlines() if re.match(r"(\[rank\d+\]: )?\S*Error\b", line)
            ]
            last += lines[-1:]
        own = [line for line in last if not re.search(r"LostError|Connection (closed|reset)", line)]
        return re.sub(r"^\[rank\d+\]: ", "", (*own, *last, "a process is gone")[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- in the processes -------------------------------------------------------------------------------------------------


class Worker:
    """One process of a race, which carries out orders together with the others."""

    def __init__(self, course: Course, threads: int) -> None:
        from rivals import Contestant

        from pipeflow.distributed import ParallelConfig, open_world, prepare_process

        # A world has a part a process at least; where the course has no cut, nobody looks at the parts.
        config = ParallelConfig(backend="gloo", depth=course.depth, threads=threads)
        self.course = course
        self.world = open_world(config, int(os.environ["WORLD_SIZE"]), "cpu")
        prepare_process(threads, self.world.device)
        self._groups: dict[str, Any] = {}
        self._known: dict[str, Contestant] = {}
        self._control = self._connections()
        warm_up()
        self._base = rest()

    def carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        """What all processes found out together."""
        from rivals import make

        course = replace(self.course, batch=order["batch"])
        key = json.dumps([order["name"], order["setting"], order["batch"]])
        if key not in self._known:
            self._known[key] = make(order["name"], course, self.world, self._groups, **order["setting"])
        contestant = self._known[key]
        first = self._steps(contestant, 0, 1, 0)
        steps = max(order["least"], math.ceil(order["seconds"] / first["step_s"]))
        if not contestant.after and steps == 1:  # a step that begins and ends with nothing on its way is a measurement
            return {"setting": order["setting"], **first}
        return {"setting": order["setting"], **self._steps(contestant, contestant.warm, steps, contestant.after)}

    def _steps(self, contestant: Any, warm: int, steps: int, after: int) -> dict[str, Any]:
        """`steps` steps measured, behind `warm` and before `after` that are not."""
        count = warm + steps + after
        rest()
        before = self._traffic()
        contestant.begin(count)
        self._meet()
        marks, worked = [time.perf_counter()], time.process_time()
        for _ in range(count):
            contestant.step()
            marks.append(time.perf_counter())
        contestant.end()
        worked = time.process_time() - worked
        self._meet()
        moved = {fd: received - before.get(fd, 0) for fd, received in self._traffic().items()}
        mine = {
            "step_s": (marks[warm + steps] - marks[warm]) / steps,
            "spent": {kind: seconds / count for kind, seconds in contestant.spent.items()},
            "received": self._by_peer(moved, count),
            "cpu_s": worked / count,
            "peak_bytes": status("VmHWM"),
            "training_bytes": status("VmHWM") - self._base,
        }
        everyone = [json.loads(text) for text in self.world.exchange(json.dumps(mine).encode())]
        clock = everyone[contestant.clock]["step_s"]
        return {
            "steps": steps,
            "step_s": clock,
            "images_per_s": contestant.course.batch / clock,
            "spent": [one["spent"] for one in everyone],
            "step_s_by_rank": [one["step_s"] for one in everyone],
            **{kind: [one[kind] for one in everyone] for kind in ("cpu_s", "peak_bytes", "training_bytes")},
            "borders": [
                {
                    "forward": everyone[rank + 1]["received"].get(str(rank), 0),
                    "backward": everyone[rank]["received"].get(str(rank + 1), 0),
                }
                for rank in range(self.world.size - 1)
            ],
            "all": sum(sum(one["received"].values()) for one in everyone),
        }

    def _meet(self, data: bytes = b"") -> None:
        self.world.exchange(data)

    def _traffic(self) -> dict[str, int]:
        """Bytes received so far, by connection, without what processes use to meet."""
        from pipeflow.distributed.socket_counters import sockets

        return {_key(s.own, s.peer): s.received for s in sockets() if _key(s.own, s.peer) not in self._control}

    def _connections(self) -> set[str]:
        """The connections over which processes meet: those that carry something when nothing else happens."""
        from pipeflow.distributed.socket_counters import sockets

        self._control: set[str] = set()
        before = self._traffic()
        for size in (0, 100, 100_000):
            self._meet(bytes(size))
        self._meet()
        after = {_key(s.own, s.peer): s.received for s in sockets()}
        return {key for key, received in after.items() if received != before.get(key)}

    def _by_peer(self, moved: dict[str, int], count: int) -> dict[int, float]:
        """Bytes a step, by the rank that they came from: whose end of the connection mirrors ours."""
        ends = [json.loads(text) for text in self.world.exchange(json.dumps(list(moved)).encode())]
        owner = {key: rank for rank, keys in enumerate(ends) for key in keys if rank != self.world.rank}
        found: dict[int, float] = {}
        for key, received in moved.items():
            mirror = " ".join(reversed(key.split(" ")))
            if mirror in owner and received:
                found[owner[mirror]] = found.get(owner[mirror], 0) + received / count
        return found


def warm_up() -> None:
    """One step of a very small flow, so that the code that is loaded on first use is there."""
    from course import Again
    from rivals import make_stage

    from pipeflow.stream import Discard

    course = Course(levels=1, steps=1, hidden=4, size=4, at=(), batch=2)
    stage = make_stage(course, course.build()[1])
    stage.connect(Again(course.head().recv()), Discard())
    stage.tick()


def rest() -> int:
    """Hands free memory back to the system and forgets the peak; the bytes that are still resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5): resets VmHWM
    return status("VmRSS")


def status(name: str) -> int:
    """A size that Linux keeps of this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, name
    return 1024 * int(found[1])


def _key(own: tuple[str, int], peer: tuple[str, int]) -> str:
    return f"{own[0]}:{own[1]} {peer[0]}:{peer[1]}"


def work(course: Course, threads: int) -> None:
    """Carries out orders until the last one."""
    worker = Worker(course, threads)
    while True:
        line = sys.stdin.readline() if worker.world.rank == 0 else ""
        order = json.loads(worker.world.exchange(line.encode())[0] or '{"order": "end"}')
        answer = {} if order["order"] == "end" else worker.carry_out(order)
        if worker.world.rank == 0:
            print(json.dumps(answer), flush=True)
        if order["order"] == "end":
            return


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    work(Course(**{**given, "at": tuple(given["at"])}), int(sys.argv[2]))
