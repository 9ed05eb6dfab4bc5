"""The strip above a loss figure: which part learned when, and in which phase."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from .drawing import MODEL, colour
from .run_files import Floats, Integers, PartMetrics
from .run_history import PhaseHistory


def draw_strip(
    strip: Axes,
    progress: Callable[[Integers], Floats],
    streams: list[PartMetrics],
    phases: list[PhaseHistory],
    parts: int,
) -> None:
    """Draws a bar per part wherever it learned.

    Args:
        strip: shares its horizontal axis with the figure below it.
        progress: step → position on the horizontal axis.
        streams, phases: those that the figure shows.
        parts: how many rows the strip has.
    """
    for stream in streams:
        low, high = (0, parts) if stream.part is None else (stream.part, stream.part + 1)
        shade = MODEL if stream.part is None else colour(stream.part)
        for phase in phases:
            rows = (stream.phase == phase.number) & stream.learn
            if spans := _spans(stream.step[rows], progress):
                strip.broken_barh(spans, (low + 0.08, high - low - 0.16), color=shade, linewidth=0)
    for phase in phases[1:]:
        strip.axvline(progress(np.array([phase.first - 1]))[0], color="white", linewidth=2)
    strip.set(ylim=(parts, 0), yticks=[])
    strip.set_ylabel("learns", rotation=0, ha="right", va="center", fontsize=9)
    strip.tick_params(bottom=False, labelbottom=False)
    strip.grid(False)
    for spine in strip.spines.values():
        spine.set_visible(False)
    _name_phases(strip, progress, phases)


def _spans(step: Integers, progress: Callable[[Integers], Floats]) -> list[tuple[float, float]]:
    """(begin, length) of each run of consecutive steps."""
    if not len(step):
        return []
    breaks = np.flatnonzero(np.diff(step) > 1)
    first, last = step[np.insert(breaks + 1, 0, 0)] - 1, step[np.append(breaks, len(step) - 1)]
    begin = progress(first)
    return list(zip(begin, progress(last) - begin, strict=True))


def _name_phases(strip: Axes, progress: Callable[[Integers], Floats], phases: list[PhaseHistory]) -> None:
    """Names above the strip; where there is no room, numbers."""
    low, high = strip.get_xlim()
    for phase in phases:
        begin, end = progress(np.array([phase.first - 1, phase.last]))
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
