"""What every step of a run cost: seconds of training without pauses, and bytes that parts handed forward."""

from collections.abc import Sequence

import numpy as np
import torch

from ..config import Config
from ..model import cut_steps, family_cut, family_steps
from .run_files import Floats, Integers, PartMetrics

PAUSE = 20  # a step that took so many times the median of its phase was waiting for something else than training


def training_seconds(
    steps: Integers, streams: list[PartMetrics], phases: Sequence[tuple[int, int]]
) -> tuple[Floats, float]:
    """Seconds of training from the first step's end until every step's, and the seconds of pauses left out of them.

    `steps` are all steps taken, in order; `phases` the (first, last) of each phase.
    """
    done = np.zeros(len(steps))
    for stream in streams:
        rows = np.searchsorted(steps, stream.step)
        done[rows] = np.maximum(done[rows], stream.time)
    took = np.diff(np.maximum.accumulate(done), prepend=done[0])
    paused = 0.0
    for first, last in phases:
        rows = np.flatnonzero((steps >= first) & (steps <= last))
        pauses = rows[took[rows] > PAUSE * np.median(took[rows])]
        paused += float(took[pauses].sum())
        took[pauses] = 0.0
    return np.cumsum(took), paused


def bytes_handed_forward(
    steps: Integers, streams: list[PartMetrics], configs: list[tuple[int, Config]], image: list[int]
) -> Floats:
    """Bytes until every step: a packet crosses a border where the part after it took one.

    `steps` are all steps taken, in order; `configs` the (step, settings that held until it), in order; `image` is
    (C, H, W).
    """
    sent, first = np.zeros(len(steps)), 0
    for until, config in configs:
        costs = _border_bytes(config, image)
        for stream in streams:
            if stream.part and stream.part <= len(costs):
                taken = stream.step[(stream.step > first) & (stream.step <= until)]
                sent[np.searchsorted(steps, taken)] += costs[stream.part - 1]
        first = until
    return np.cumsum(sent)


def _border_bytes(config: Config, image: Sequence[int]) -> list[int]:
    """Bytes of one packet at each border, with the latents as `parallel.wire` sends them."""
    channels, height, width = image
    event = (channels, height, width)
    with torch.device("meta"):  # shapes need no weights
        parts = cut_steps(family_steps(config.family, event), family_cut(config.cut, config.family), event)
    each = [config.parallel.bytes_per_image(part.event_out, config.data.labels) for part in parts[:-1]]
    return [config.data.batch * size for size in each]
