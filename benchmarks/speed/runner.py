"""Starts the processes of a speed benchmark, and has them take one measurement after another.

Everything that is compared is measured in the same processes, in turns: approach after approach, round after round, so
that whatever else the machine does meets all of them. The driver talks to rank 0 through its standard input and output,
a JSON object per line, and rank 0 hands each order on to the others (`benchmarks.speed.worker`); so the driver can
print as it goes, and change the network in between.

    with Runner(workload, processes=2) as runner:
        found = runner.measure("1f1b", {"micro": 4}, seconds=5.0)
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from benchmarks.lib.namespaces import Hosts
from benchmarks.lib.torchrun import environment, free_port
from benchmarks.lib.workload import Workload


class BrokenError(RuntimeError):
    """An approach did not run: the error of the process that failed first."""


class Runner:
    """Processes that wait for orders.

    Args:
        workload: the model and the data.
        processes: how many; as many as parts, or one, or a workload without a cut.
        hosts: network namespaces to put them into, the first half into the first one; this machine's loopback if None.
        threads: that each process computes with.
        timeout_s: a measurement that takes longer hangs, and ends the processes.
    """

    def __init__(
        self,
        workload: Workload,
        processes: int,
        hosts: Hosts | None = None,
        threads: int = 1,
        timeout_s: float = 900.0,
    ) -> None:
        self.workload, self.processes, self._timeout_s = workload, processes, timeout_s
        self._errors = [tempfile.TemporaryFile("w+") for _ in range(processes)]  # noqa: SIM115 - closed on exit
        address, port = (hosts[0].address, 29400) if hosts else ("127.0.0.1", free_port())
        self._workers = []
        for rank in range(processes):
            host = hosts[rank * 2 // processes] if hosts else None
            names = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
            names |= {"MASTER_ADDR": address, "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": host.device if host else "lo"}
            names["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # all share it
            command = [*(host.prefix if host else []), sys.executable, "-m", "benchmarks.speed.worker"]
            command += [json.dumps(asdict(workload)), str(threads)]
            pipe = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            streams: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": self._errors[rank]}
            self._workers.append(subprocess.Popen(command, env=environment(threads, **names), text=True, **streams))

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
        """Measures one approach for about so many seconds.

        Args:
            name: of the approach.
            setting: of it, as `make_approach` takes it.
            seconds: of the steps that are measured; known from the first ones, which are not.
            batch: images per optimizer step, if not the workload's own.
            least: steps that are measured even if they take longer.

        Returns:
            By the clock of the process that finishes a batch: "images_per_s", "step_s" and "steps".
            By rank: "step_s_by_rank"; "spent", seconds per step that went into "compute", "wait" and "send"; "cpu_s",
            of the processor, all threads together, per step; "peak_bytes", the largest resident size during the steps;
            "training_bytes", that without what the process held before there was any approach.
            Bytes per step: "borders", between each two neighbours "forward" and "backward"; "all", between any two.

        Raises:
            BrokenError: it does not run; nor does anything else in these processes from now on.
        """
        order = {"order": "measure", "name": name, "setting": setting, "seconds": seconds, "least": least}
        return self._ask({**order, "batch": batch or self.workload.batch})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        pipes = self._workers[0]
        assert pipes.stdin and pipes.stdout
        overdue = threading.Timer(self._timeout_s, lambda: [worker.kill() for worker in self._workers])
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
            raise BrokenError(self._first_error())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _first_error(self) -> str:
        """The last error of a process that failed for a reason of its own, or else of the first that failed."""
        last = []
        for worker, errors in zip(self._workers, self._errors, strict=True):
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
            errors.seek(0)
            lines = [text.strip() for text in errors if re.match(r"(\[rank\d+\]: )?\S*Error\b", text)]
            last += lines[-1:]
        causes = [line for line in last if not re.search(r"LostError|Connection (closed|reset)", line)]
        return re.sub(r"^\[rank\d+\]: ", "", (*causes, *last, "a process is gone")[0])
