"""Figures of runs besides their losses: where the bits go, who waits for whom, and several runs compared."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from ..units import time_unit
from .drawing import GREY, MODEL, Drawing, colour, new_figure
from .run_files import Floats
from .run_history import RunHistory

_SHADES = {"computing": "#56B4E9", "waiting for a packet": "#BBBBBB", "handing on": "#CC79A7"}


def ledger_figure(history: RunHistory) -> Drawing | None:
    """The ledger at every evaluation; None before the model's last part has been evaluated."""
    lines = history.model_evaluations
    if not lines:
        return None
    # Cutting anew changes how many parts there are: what the last cut knows is drawn.
    lines = [line for line in lines if len(line["parts"]) == len(lines[-1]["parts"])]
    epochs = _at_least_two([line["epoch"] for line in lines])
    with new_figure(4.6) as (figure, png):
        axes = figure.subplots()
        above, below = np.zeros(len(epochs)), np.zeros(len(epochs))
        for label, values, look in _entries(lines):
            height = _at_least_two(values)
            if not np.any(height):
                continue
            top, bottom = above + np.maximum(height, 0), below + np.minimum(height, 0)
            axes.fill_between(epochs, above, top, label=label, **look)
            axes.fill_between(epochs, below, bottom, **look)
            above, below = top, bottom
        bits = _at_least_two([line["parts"][-1]["bits_per_dim"] for line in lines])
        axes.plot(epochs, bits, color="white", linewidth=4)
        axes.plot(epochs, bits, color=MODEL, linewidth=2, label="their sum: the model")
        axes.axhline(0, color=MODEL, linewidth=0.8)
        axes.set(xlabel="passes over the data (epochs)", ylabel=f"bits/dim on the {history.split} split")
        axes.margins(x=0)
        figure.legend(loc="outside lower center", ncols=3)
        return Drawing("ledger.png", png())


def _entries(lines: list[dict[str, Any]]) -> list[tuple[str, list[float], dict[str, Any]]]:
    """(label, value at each evaluation, how it is drawn) of each entry of the ledger."""
    parts = range(len(lines[-1]["parts"]))
    entries: list[tuple[str, list[float], dict[str, Any]]] = [
        ("dequantisation", [line["dequantisation"] for line in lines], {"facecolor": "#D9D9D9"})
    ]
    for part in parts:
        values = [line["parts"][part]["log_det"] for line in lines]
        entries.append((f"log-dets, part {part + 1}", values, {"facecolor": colour(part)}))
    for part in parts:
        values = [line["parts"][part]["split_prior"] for line in lines]
        look = {"facecolor": "white", "edgecolor": colour(part), "hatch": "////", "linewidth": 0.6}
        entries.append((f"split priors, part {part + 1}", values, look))
    entries.append(("last prior", [line["parts"][-1]["prior"] for line in lines], {"facecolor": "#8C8C8C"}))
    return entries


def _at_least_two(values: list[float]) -> Floats:
    """The values; a single one twice, so that it can be seen as a line or an area."""
    return np.array(values if len(values) > 1 else values * 2, dtype=np.float64)


def time_shares_figure(history: RunHistory) -> Drawing:
    """A bar per part and phase, cut into what its time went to."""
    rows = [
        (phase, metrics)
        for phase in history.phases
        for stream in history.streams
        if len((metrics := stream.in_phase(phase.number)).step)
    ]
    with new_figure(1.3 + 0.27 * (len(rows) + 0.6 * len(history.phases))) as (figure, png):
        axes = figure.subplots()
        height, heights = 0.0, []
        for number, (phase, metrics) in enumerate(rows):
            if number == 0 or phase != rows[number - 1][0]:
                axes.text(0, height + 0.1, f"phase {phase.number}: {phase.name}", va="center", fontweight="bold")
                height += 1.0
            times = [float(np.sum(column)) for column in (metrics.compute, metrics.wait, metrics.send)]
            total, left = max(sum(times), 1e-12), 0.0
            for time, shade in zip(times, _SHADES.values(), strict=True):
                axes.barh(height, 100 * time / total, left=left, color=shade, height=0.78)
                left += 100 * time / total
            text = f"{1e3 * total / len(metrics.step):.3g} ms a step"
            axes.text(101.5, height, text, va="center", fontsize=9, color=GREY)
            heights.append(height)
            height += 1.0
        axes.set(xlim=(0, 100), ylim=(height - 0.4, -0.6), xlabel="share of the time in its steps (%)")
        axes.set_yticks(heights, [metrics.name for _, metrics in rows])
        axes.tick_params(axis="y", length=0)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        patches = [matplotlib.patches.Patch(color=shade, label=label) for label, shade in _SHADES.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=3)
        return Drawing("shares.png", png())


def comparison_figure(histories: Sequence[RunHistory]) -> Drawing | None:
    """A curve per run; None before any evaluation."""
    if not any(history.model_evaluations for history in histories):
        return None
    unit, size = time_unit(max(history.seconds[-1] for history in histories))
    with new_figure(4.2) as (figure, png):
        left, right = figure.subplots(1, 2, sharey=True)
        for number, history in enumerate(histories):
            lines = history.model_evaluations
            bits = [line["bits_per_dim"] for line in lines]
            steps = np.array([line["step"] for line in lines], dtype=np.int64)
            look: dict[str, Any] = {"color": colour(number), "marker": "osD^vP"[number % 6], "markersize": 4}
            left.plot([line["epoch"] for line in lines], bits, label=history.name, **look)
            right.plot(history.at(history.seconds, steps) / size, bits, **look)
        splits = " or ".join(sorted({history.split for history in histories}))
        left.set(xlabel="passes over the data (epochs)", ylabel=f"{splits} bits/dim of the model")
        right.set(xlabel=f"time spent training ({unit})")
        figure.legend(loc="outside lower center", ncols=min(4, len(histories)))
        return Drawing("compared.png", png())
