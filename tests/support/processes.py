"""Real processes for tests: meeting at a file, and named when they hang, are killed or raise.

`torch.multiprocessing.spawn` reports the first failure and loses return values; this returns what every rank returned.
Processes are forked from a server that has imported everything and computed nothing: spawned ones would take seconds
each, only to import.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeflow.distributed import prepare_process

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("pipeflow.train", "pipeflow.evaluate", "pipeflow.sample", "pipeflow.report"),
        *("sklearn.datasets", "torchvision", "torch.utils.tensorboard", "tests.support.small_runs"),
    ]
)


def in_processes(
    size: int, work: Callable[..., Any], *arguments: Any, directory: Path, timeout_s: float = 120
) -> list[Any]:
    """Runs `work(init_method, *arguments)` in `size` processes, as torchrun would start them.

    Args:
        size: number of processes; 1 is a world of one, without an environment.
        work: a function at the top of a module.
        arguments: handed on; multiprocessing events and values may be among them.
        directory: an empty one, where the processes meet.
        timeout_s: after it the processes still running are killed and named.

    Returns:
        What each rank returned, by rank.
    """
    results: Any = CONTEXT.Queue()
    directory.mkdir(parents=True, exist_ok=True)
    processes = [
        CONTEXT.Process(target=_enter, args=(rank, size, directory, results, work, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    returned: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    problems: dict[int, str] = {}
    while len(returned) + len(problems) < size and time.monotonic() < deadline:
        with contextlib.suppress(queue.Empty):
            rank, value, trouble = results.get(timeout=0.2)
            if trouble:
                problems[rank] = f"rank {rank} raised:\n{trouble}"
            else:
                returned[rank] = value
            continue
        for rank in {*range(size)} - {*returned, *problems}:
            if processes[rank].exitcode not in (None, 0):
                crash = (directory / f"crash-{rank}").read_text()
                problems[rank] = f"rank {rank} ended with exit code {processes[rank].exitcode}\n{crash}"
        if problems:  # the others have a moment to say what they saw
            deadline = min(deadline, time.monotonic() + 5)
    hung = f"hung for {timeout_s} s" if not problems else "went on"
    problems |= {rank: f"rank {rank} {hung}" for rank in {*range(size)} - {*returned, *problems}}
    for process in processes:
        process.join(timeout=0 if problems else 20)
        if process.is_alive():
            process.kill()
            process.join()
    assert not problems, "\n".join(problems.values())
    return [returned[rank] for rank in range(size)]


def _enter(rank: int, size: int, directory: Path, results: Any, work: Callable[..., Any], arguments: Any) -> None:
    faulthandler.enable((directory / f"crash-{rank}").open("w"))
    prepare_process(1, torch.device("cpu"))
    if size > 1:
        ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        os.environ |= {name: str(value) for name, value in ranks.items()} | {"GLOO_SOCKET_IFNAME": "lo"}
    try:
        results.put((rank, work(f"file://{directory}/meet", *arguments), ""))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
