"""What each part did with the time of its steps, phase by phase: who waits, and who computes."""

import matplotlib
import numpy as np

from .drawing import GREY, Drawing, new_figure
from .run_history import RunHistory

_SHADES = {"computing": "#56B4E9", "waiting for a packet": "#BBBBBB", "handing on": "#CC79A7"}


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
        caption = (
            "A part that waits has a slower one before it; one that is long in handing on has a slower one after it. "
            "In one process parts take turns, so none waits. End to end it is the first process, whose averaging of "
            "gradients counts as computing."
        )
        return Drawing("shares.png", "Who waits, who computes", caption, png())
