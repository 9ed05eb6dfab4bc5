"""Measured step times → the cut whose slowest part is as fast as possible.

Multiply-adds predict a GPU's time badly at the small latents of the deep levels; the clock does not. Steps of one kind
and one shape take equally long, so each is measured once.
"""

import copy
import time
from collections.abc import Sequence

import torch

from .flow import Event, Step


def measure_steps(
    steps: Sequence[Step], event: Event, batch: int, device: torch.device, repeats: int = 5
) -> list[float]:
    """Seconds of forward + backward of every step, the median of `repeats`, after one run to warm up.

    Args:
        steps: the whole flow; neither changed nor moved.
        event: shape of what enters.
        batch: images, as in the run.
        device: where the run takes place.
    """
    known: dict[tuple[type, Event], float] = {}
    seconds = []
    for step in steps:
        key = (type(step), tuple(event))
        if key not in known:
            known[key] = _seconds(copy.deepcopy(step).to(device), torch.randn(batch, *event, device=device), repeats)
        seconds.append(known[key])
        event = step.out_shape(event)
    return seconds


def _seconds(step: Step, z: torch.Tensor, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        given = z.clone().requires_grad_()
        _synchronise(z.device)
        start = time.perf_counter()
        out, dlogp = step(given)
        (out.sum() + dlogp.sum()).backward()
        _synchronise(z.device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flow_step_costs(steps: Sequence[Step], seconds: Sequence[float]) -> list[float]:
    """Seconds of each flow step, with those of the squeeze that opens it and the split that closes it."""
    costs: list[float] = []
    opening = 0.0
    for step, cost in zip(steps, seconds, strict=True):
        if step.place == "opens":
            opening += cost
        elif step.place == "closes":
            costs[-1] += cost
        else:
            costs.append(opening + cost)
            opening = 0.0
    return costs


def balanced_cut(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """The borders with the smallest possible largest part; among equals, the parts before the largest are balanced too.

    Args:
        costs: seconds of each flow step.
        parts: number of parts.

    Raises:
        ValueError: more parts than flow steps.
    """
    if parts > len(costs):
        raise ValueError(f"cut.parts is {parts}, but the flow has only {len(costs)} flow steps.")
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[end]: (largest part, borders) of the first `end` flow steps in so many parts.
    best: dict[int, tuple[float, tuple[int, ...]]] = {end: (before[end], ()) for end in range(1, len(costs) + 1)}
    for _ in range(parts - 1):
        best = {
            end: min((max(best[border][0], before[end] - before[border]), (*best[border][1], border))
                     for border in best if border < end)
            for end in range(min(best) + 1, len(costs) + 1)
        }  # fmt: skip
    return best[len(costs)][1]
