"""Time on a device: what was asked of a GPU counts when it is done."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Clock = Callable[[], float]


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Seconds by a clock, when the device has done all that it was asked to do."""
    synchronise(device)
    return clock()


def seconds_per_call(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The median over five measurements, of about a fifth of `seconds` each, after three calls to warm up."""
    for _ in range(2):
        work()
    start = now(device)
    work()
    repeats = max(1, math.ceil(seconds / 5 / (now(device) - start)))
    times = []
    for _ in range(5):
        start = now(device)
        for _ in range(repeats):
            work()
        times.append((now(device) - start) / repeats)
    return statistics.median(times)
