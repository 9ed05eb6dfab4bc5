"""Loss against epochs, against time and against bytes handed forward.

TensorBoard draws a scalar against a step. A run by parts asks which part learned when, and what that cost in passes,
time and bytes: a line per part lies under a strip that shows when each part learned, and evaluations are points.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from ..units import byte_unit, time_unit
from .drawing import GREY, MODEL, Drawing, colour, new_figure
from .run_files import Floats, Integers, PartMetrics
from .run_history import PhaseHistory, RunHistory


class Progress(NamedTuple):
    """A way to measure how far a run is: a label with its unit, and a function of steps."""

    label: str
    of: Callable[[Integers], Floats]


def loss_by_epoch(history: RunHistory) -> Drawing:
    """Loss against passes over the data."""
    known = history.epoch_steps
    label = "passes over the data (epochs)" if known else "batches (steps)"
    return _loss(history, Progress(label, lambda step: step / (known or 1)), "loss_epoch.png", history.streams)


def loss_by_time(history: RunHistory) -> Drawing:
    """Loss against seconds of training, without pauses."""
    unit, size = time_unit(history.seconds[-1])
    progress = Progress(f"time spent training ({unit})", lambda step: history.at(history.seconds, step) / size)
    return _loss(history, progress, "loss_time.png", history.streams)


def loss_by_bytes(history: RunHistory) -> Drawing | None:
    """Loss against bytes handed forward while training by parts; None where there are no borders, or none known."""
    sent = history.sent
    if sent is None or not sent[-1]:
        return None
    unit, size = byte_unit(sent[-1])
    label = f"latents handed forward by parts, computed ({unit})"
    parts = [stream for stream in history.streams if stream.part is not None]
    return _loss(history, Progress(label, lambda step: history.at(sent, step) / size), "loss_bytes.png", parts)


def _loss(history: RunHistory, progress: Progress, file: str, streams: list[PartMetrics]) -> Drawing:
    parts = max([stream.part + 1 for stream in history.streams if stream.part is not None], default=1)
    phases = [phase for phase in history.phases if any(len(stream.in_phase(phase.number).step) for stream in streams)]
    with new_figure(4.3 + 0.14 * parts) as (figure, png):
        strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=[0.16 * parts, 3.4])
        smooth = [_draw_part(axes, history, stream, progress) for stream in streams]
        points = _draw_evaluations(axes, history, progress, phases)
        for phase in phases[1:]:
            begin = progress.of(np.array([phase.first - 1]))[0]
            axes.axvline(begin, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        cut_off = _set_limits(axes, np.concatenate([*smooth, points]))
        axes.set(xlabel=progress.label, ylabel="bits/dim")
        axes.margins(x=0.01)
        _draw_strip(strip, progress, streams, phases, parts)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return Drawing(file, png(), cut_off)


def _draw_part(axes: Axes, history: RunHistory, stream: PartMetrics, progress: Progress) -> Floats:
    """Draws a part's loss; returns the smoothed values."""
    steps, label = len(history.steps), _label(history, stream)
    shade = MODEL if stream.part is None else colour(stream.part)
    values = []
    for number in np.unique(stream.phase):
        rows = stream.phase == number
        step, bits = stream.step[rows], stream.bits[rows]
        bits = np.where(np.isfinite(bits), bits, np.nan)
        soft = _smoothed(bits, history.window)
        # A part rests while others before it take their turns: only a short rest is bridged by a line.
        gaps = np.flatnonzero(np.diff(step) > max(1, 0.02 * steps)) + 1
        x = np.insert(progress.of(step), gaps, np.nan)
        lone = "." if len(step) <= 2 * len(gaps) + 1 else None
        faint = 0.35 if steps < 3000 else 0.12  # so many steps make a band
        axes.plot(x, np.insert(bits, gaps, np.nan), color=shade, alpha=faint, linewidth=0.7, marker=lone, zorder=1)
        axes.plot(x, np.insert(soft, gaps, np.nan), color=shade, linewidth=1.8, label=label, zorder=2)
        values.append(soft)
        label = "_"
    return np.concatenate(values)


def _draw_evaluations(axes: Axes, history: RunHistory, progress: Progress, phases: list[PhaseHistory]) -> list[float]:
    """Draws the evaluations; returns the values."""
    lines = [line for line in history.evaluations if any(phase.first <= line["step"] <= phase.last for phase in phases)]
    drawn: list[float] = []

    def scatter(lines: list[dict[str, Any]], part: int, **look: Any) -> None:
        if lines:
            x = progress.of(np.array([line["step"] for line in lines], dtype=np.int64))
            bits = [float(line["parts"][part]["bits_per_dim"]) for line in lines]
            axes.scatter(x, bits, zorder=3, edgecolor="white", linewidth=0.5, **look)
            drawn.extend(bits)

    for part in range(max((len(line["parts"]) for line in lines), default=0)):
        truncated = [line for line in lines if part < len(line["parts"]) - bool(line["complete"])]
        scatter(truncated, part, color=colour(part), marker="o", s=16, label=f"{history.split}: after part {part + 1}")
    complete = [line for line in lines if line["complete"]]
    scatter(complete, -1, color=MODEL, marker="D", s=30, label=f"{history.split}: the model")
    return drawn


def _draw_strip(
    strip: Axes, progress: Progress, streams: list[PartMetrics], phases: list[PhaseHistory], parts: int
) -> None:
    """Draws a bar per part wherever it learned, on the horizontal axis of the figure below."""
    for stream in streams:
        low, high = (0, parts) if stream.part is None else (stream.part, stream.part + 1)
        shade = MODEL if stream.part is None else colour(stream.part)
        for phase in phases:
            rows = (stream.phase == phase.number) & stream.learn
            if spans := _spans(stream.step[rows], progress):
                strip.broken_barh(spans, (low + 0.08, high - low - 0.16), color=shade, linewidth=0)
    for phase in phases[1:]:
        strip.axvline(progress.of(np.array([phase.first - 1]))[0], color="white", linewidth=2)
    strip.set(ylim=(parts, 0), yticks=[])
    strip.set_ylabel("learns", rotation=0, ha="right", va="center", fontsize=9)
    strip.tick_params(bottom=False, labelbottom=False)
    strip.grid(False)
    for spine in strip.spines.values():
        spine.set_visible(False)
    _name_phases(strip, progress, phases)


def _spans(step: Integers, progress: Progress) -> list[tuple[float, float]]:
    """(begin, length) of each run of consecutive steps."""
    runs = [run for run in np.split(step, np.flatnonzero(np.diff(step) > 1) + 1) if len(run)]
    ends = [progress.of(np.array([run[0] - 1, run[-1]])) for run in runs]
    return [(begin, end - begin) for begin, end in ends]


def _name_phases(strip: Axes, progress: Progress, phases: list[PhaseHistory]) -> None:
    """Names above the strip; where there is no room, numbers."""
    low, high = strip.get_xlim()
    for phase in phases:
        begin, end = progress.of(np.array([phase.first - 1, phase.last]))
        letters = (end - begin) / max(high - low, 1e-12) * 60
        names = (f"{phase.number}: {phase.name}", str(phase.number))
        strip.annotate(
            next((name for name in names if len(name) < letters), ""),
            ((begin + end) / 2, 1),
            (0, 2),
            ("data", "axes fraction"),
            "offset points",
            ha="center",
            fontsize=9.5,
        )


def _set_limits(axes: Axes, values: Floats) -> bool:
    """Sets the frame by the smoothed lines and points, not by single steps; True if some of them lie above it."""
    values = values[np.isfinite(values)]
    if not len(values):
        return False
    low, usual, most = float(values.min()), float(np.quantile(values, 0.98)), float(values.max())
    high = most if most - low < 1.5 * (usual - low) else usual
    room = 0.06 * max(high - low, 1e-3)
    axes.set_ylim(low - room, high + room)
    return high < most


def _label(history: RunHistory, stream: PartMetrics) -> str:
    if stream.part is None:
        return "end to end"
    return f"after part {stream.part + 1}" + (" (the model)" if stream.part + 1 == history.config.cut.parts else "")


def _smoothed(values: Floats, window: int) -> Floats:
    """A moving mean that passes over what is not a number."""
    window = min(window, len(values))
    known = np.isfinite(values)
    kernel = np.ones(window)
    count = np.convolve(known.astype(np.float64), kernel, "same")
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
