"""The figures of a report, one function each: a run's story → a PNG with its title and caption.

TensorBoard draws a scalar against a step. What a run by parts asks is another thing: which part learned when, what that
cost in passes, time and bytes, and who waited for whom.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .run_history import PAUSE, Leg, Numbers, Story, Track, Whole

REPORT_MAKER = "pipeflow.report"  # in every file that a report consists of, so that no other is written over
DPI = 150
# Okabe and Ito's palette, which colour-blind people can tell apart; black is the model's.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MODEL, GREY = "#222222", "#777777"
_SPENT = ("#56B4E9", "#BBBBBB", "#CC79A7")  # computing, waiting, handing on
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        file: name of its PNG.
        title, caption: in words.
        png: the picture.
    """

    file: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class _Axis:
    """A way to measure how far a run is: the name with its unit, and steps → values."""

    label: str
    of: Callable[[Whole], Numbers]


def loss_by_epoch(story: Story) -> Drawing:
    """Loss against passes over the data."""
    known = story.epoch_steps
    axis = _Axis("passes over the data (epochs)" if known else "batches (steps)", lambda step: step / (known or 1))
    return _loss(story, axis, "loss_epoch", "Loss against epochs", "", story.tracks)


def loss_by_time(story: Story) -> Drawing:
    """Loss against seconds of training, without pauses."""
    unit, size = _time_unit(story.seconds[-1])
    axis = _Axis(f"time spent training ({unit})", lambda step: story.at(story.seconds, step) / size)
    caption = f"The clock of the metrics, without pauses: a step longer than {PAUSE} times its phase's median "
    caption += f"(interruptions, long evaluations) is not counted. Left out: {duration(story.paused)}."
    return _loss(story, axis, "loss_time", "Loss against time", caption, story.tracks)


def loss_by_bytes(story: Story) -> Drawing | None:
    """Loss against bytes handed forward while training by parts; None where there are no borders, or none known."""
    sent = story.sent
    if sent is None or not sent[-1]:
        return None
    unit, size = _byte_unit(sent[-1])
    axis = _Axis(f"latents handed forward by parts, computed ({unit})", lambda step: story.at(sent, step) / size)
    width = {"fp32": "4 bytes", "bf16": "2 bytes"}[story.config.parallel.wire]
    caption = f"Computed, not measured: {width} a number of each latent and 4 of each log-likelihood, for every packet "
    caption += "of training that crosses a border, within a process or between two. End to end nothing crosses "
    caption += "borders; that phase is left out."
    parts = [track for track in story.tracks if track.part is not None]
    return _loss(story, axis, "loss_bytes", "Loss against bytes sent forward", caption, parts)


def ledger(story: Story) -> Drawing | None:
    """Where the bits go at every evaluation; None before the model's last part has been evaluated."""
    lines = [line for line in story.evaluations if line["complete"]]
    if not lines:
        return None
    # Cutting anew changes how many parts there are: what the last cut knows is drawn.
    lines = [line for line in lines if len(line["parts"]) == len(lines[-1]["parts"])]
    x = _spread([line["epoch"] for line in lines])
    many = len(lines[-1]["parts"])
    entries: list[tuple[str, list[float], dict[str, Any]]] = [
        ("dequantisation", [line["dequantisation"] for line in lines], {"facecolor": "#D9D9D9"})
    ]
    for part in range(many):
        values = [line["parts"][part]["log_det"] for line in lines]
        entries.append((f"log-dets, part {part + 1}", values, {"facecolor": colour(part)}))
    for part in range(many):
        values = [line["parts"][part]["split_prior"] for line in lines]
        look = {"facecolor": "white", "edgecolor": colour(part), "hatch": "////", "linewidth": 0.6}
        entries.append((f"split priors, part {part + 1}", values, look))
    entries.append(("last prior", [line["parts"][-1]["prior"] for line in lines], {"facecolor": "#8C8C8C"}))
    with _figure(4.6) as (figure, take):
        axes = figure.subplots()
        above, below = np.zeros(len(x)), np.zeros(len(x))
        for label, values, look in entries:
            height = _spread(values)
            if not np.any(height):
                continue
            up, down = above + np.maximum(height, 0), below + np.minimum(height, 0)
            axes.fill_between(x, above, up, label=label, **look)
            axes.fill_between(x, below, down, **look)
            above, below = up, down
        bits = [line["parts"][-1]["bits_per_dim"] for line in lines]
        axes.plot(x, _spread(bits), color="white", linewidth=4)
        axes.plot(x, _spread(bits), color=MODEL, linewidth=2, label="their sum: the model")
        axes.axhline(0, color=MODEL, linewidth=0.8)
        axes.set(xlabel="passes over the data (epochs)", ylabel="bits/dim on the test split")
        axes.margins(x=0)
        figure.legend(loc="outside lower center", ncols=3)
        caption = "What each kind of step adds to the code length of the test images. Log-determinants mostly take "
        caption += "bits away, and hang below zero; all entries add up to the model's bits/dim."
        return Drawing("ledger.png", "Where the bits go", caption, take())


def shares(story: Story) -> Drawing:
    """What each part did with the time of its steps, phase by phase."""
    rows = [(leg, within) for leg in story.legs for track in story.tracks if len((within := track.within(leg)).step)]
    with _figure(1.3 + 0.27 * (len(rows) + 0.6 * len(story.legs))) as (figure, take):
        axes = figure.subplots()
        place, places, headings = 0.0, [], []
        for number, (leg, track) in enumerate(rows):
            if number == 0 or leg != rows[number - 1][0]:
                headings.append((place, leg))
                place += 1.0
            times = [float(np.sum(column)) for column in (track.compute, track.wait, track.send)]
            total, left = max(sum(times), 1e-12), 0.0
            for spent, shade in zip(times, _SPENT, strict=True):
                axes.barh(place, 100 * spent / total, left=left, color=shade, height=0.78)
                left += 100 * spent / total
            text = f"{1e3 * total / len(track.step):.3g} ms a step"
            axes.text(101.5, place, text, va="center", fontsize=9, color=GREY)
            places.append(place)
            place += 1.0
        for height, leg in headings:
            axes.text(0, height + 0.1, f"phase {leg.number}: {leg.name}", va="center", fontweight="bold")
        axes.set(xlim=(0, 100), ylim=(place - 0.4, -0.6), xlabel="share of the time in its steps (%)")
        axes.set_yticks(places, [track.name for _, track in rows])
        axes.tick_params(axis="y", length=0)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        names = ("computing", "waiting for a packet", "handing on")
        patches = [matplotlib.patches.Patch(color=shade) for shade in _SPENT]
        figure.legend(patches, names, loc="outside lower center", ncols=3)
        caption = (
            "A part that waits has a slower one before it; one that is long in handing on has a slower one behind "
        )
        caption += "it. In one process parts take turns, so nobody waits. End to end it is the first process, whose "
        caption += "averaging of gradients counts as computing."
        return Drawing("shares.png", "Who waits, who computes", caption, take())


def compared(stories: Sequence[Story]) -> Drawing | None:
    """The models of several runs on the test split, against epochs and against time; None before any evaluation."""
    if not any(_model(story) for story in stories):
        return None
    unit, size = _time_unit(max(story.seconds[-1] for story in stories))
    with _figure(4.2) as (figure, take):
        left, right = figure.subplots(1, 2, sharey=True)
        for number, story in enumerate(stories):
            lines = _model(story)
            bits = [line["bits_per_dim"] for line in lines]
            steps = np.array([line["step"] for line in lines], dtype=np.int64)
            look: dict[str, Any] = {"color": colour(number), "marker": "osD^vP"[number % 6], "markersize": 4}
            left.plot([line["epoch"] for line in lines], bits, label=story.name, **look)
            right.plot(story.at(story.seconds, steps) / size, bits, **look)
        left.set(xlabel="passes over the data (epochs)", ylabel="test bits/dim of the model")
        right.set(xlabel=f"time spent training ({unit})")
        figure.legend(loc="outside lower center", ncols=min(4, len(stories)))
        caption = f"Time without pauses (steps longer than {PAUSE} times their phase's median are not counted)."
        if (
            len({(story.config.data.name, story.config.data.image_size, story.config.data.bits) for story in stories})
            > 1
        ):
            caption += " These runs learn from different images, whose bits/dim must not be compared."
        return Drawing("compared.png", "The models compared", caption, take())


def colour(number: int) -> Any:
    """Of a part or a run, counted from 0."""
    if number < len(PALETTE):
        return PALETTE[number]
    return matplotlib.colormaps["cividis"](number * 0.381966 % 1)  # the golden section: neighbours differ


def duration(seconds: float) -> str:
    """For people: in seconds, minutes or hours."""
    unit, size = _time_unit(seconds)
    return f"{seconds / size:.3g} {unit}"


def amount(size: float) -> str:
    """Bytes, for people."""
    unit, divisor = _byte_unit(size)
    return f"{size / divisor:.4g} {unit}"


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Callable[[], bytes]]]:
    """A figure of 7.2 × `height` inches, and what makes it a PNG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, height), dpi=DPI, layout="constrained")

        def take() -> bytes:
            stream = io.BytesIO()
            figure.savefig(stream, format="png", metadata={"Software": REPORT_MAKER})
            return stream.getvalue()

        yield figure, take


def _loss(story: Story, axis: _Axis, file: str, title: str, caption: str, tracks: list[Track]) -> Drawing:
    """A line a part over a strip that shows which part learned when, and the test split as points."""
    parts = max([track.part + 1 for track in story.tracks if track.part is not None], default=1)
    legs = [leg for leg in story.legs if any(len(track.within(leg).step) for track in tracks)]
    with _figure(4.3 + 0.14 * parts) as (figure, take):
        strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=[0.16 * parts, 3.4])
        window = max(3, len(story.steps) // 60)
        smooth = [_draw_track(axes, track, _label(story, track), axis, window, len(story.steps)) for track in tracks]
        points = _draw_points(axes, story, axis, legs)
        for leg in legs:
            if leg is not legs[0]:
                axes.axvline(axis.of(np.array([leg.first - 1]))[0], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        cut_off = _frame(axes, np.concatenate(smooth), points)
        axes.set(xlabel=axis.label, ylabel="bits/dim")
        axes.margins(x=0.01)
        _draw_strip(strip, axis, tracks, legs, parts)
        _name_phases(strip, axis, legs)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        text = caption or (
            "Lines: training loss of the flow truncated behind each part, smoothed over "
            f"{window} steps; faint: every step. Points: the test split. The strip shows which part learns when."
        )
        text += " What lies above the frame is cut off." if cut_off else ""
        return Drawing(f"{file}.png", title, text, take())


def _draw_track(axes: Axes, track: Track, label: str, axis: _Axis, window: int, steps: int) -> Numbers:
    """Draws a part's loss; returns the smoothed values."""
    shade = MODEL if track.part is None else colour(track.part)
    values = []
    for number in np.unique(track.phase):
        rows = track.phase == number
        step, bits = track.step[rows], track.bits[rows]
        bits = np.where(np.isfinite(bits), bits, np.nan)
        soft = _smoothed(bits, window)
        # A part rests while others before it take their turns: only a short rest is bridged by a line.
        gaps = np.flatnonzero(np.diff(step) > max(1, 0.02 * steps)) + 1
        x = np.insert(axis.of(step), gaps, np.nan)
        lone = "." if len(step) <= 2 * len(gaps) + 1 else None
        faint = 0.35 if steps < 3000 else 0.12  # so many steps make a band
        axes.plot(x, np.insert(bits, gaps, np.nan), color=shade, alpha=faint, linewidth=0.7, marker=lone, zorder=1)
        axes.plot(x, np.insert(soft, gaps, np.nan), color=shade, linewidth=1.8, label=label, zorder=2)
        values.append(soft)
        label = "_"
    return np.concatenate(values)


def _draw_points(axes: Axes, story: Story, axis: _Axis, legs: list[Leg]) -> Numbers:
    """Draws the test split; returns the values."""
    lines = [line for line in story.evaluations if any(leg.first <= line["step"] <= leg.last for leg in legs)]
    drawn: list[float] = []
    for part in range(max((len(line["parts"]) for line in lines), default=0)):
        own = [line for line in lines if part < len(line["parts"]) - bool(line["complete"])]
        drawn += _scatter(axes, axis, own, part, {"color": colour(part), "marker": "o", "s": 16})
    whole = [line for line in lines if line["complete"]]
    model: dict[str, Any] = {"color": MODEL, "marker": "D", "s": 30, "label": "test: the model", "edgecolor": "white"}
    return np.array(drawn + _scatter(axes, axis, whole, -1, model))


def _scatter(axes: Axes, axis: _Axis, lines: list[dict[str, Any]], part: int, look: dict[str, Any]) -> list[float]:
    if not lines:
        return []
    bits = [float(line["parts"][part]["bits_per_dim"]) for line in lines]
    x = axis.of(np.array([line["step"] for line in lines], dtype=np.int64))
    named: dict[str, Any] = {"label": f"test: behind part {part + 1}", "edgecolor": "white", "linewidth": 0.5}
    axes.scatter(x, bits, zorder=3, **named | look)
    return bits


def _draw_strip(strip: Axes, axis: _Axis, tracks: list[Track], legs: list[Leg], parts: int) -> None:
    for track in tracks:
        for leg in legs:
            within = track.within(leg)
            step = within.step[within.learn]
            if not len(step):
                continue
            breaks = np.flatnonzero(np.diff(step) > 1)
            first, last = step[np.insert(breaks + 1, 0, 0)] - 1, step[np.append(breaks, len(step) - 1)]
            start = axis.of(first)
            spans = list(zip(start, axis.of(last) - start, strict=True))
            low, high = (0, parts) if track.part is None else (track.part, track.part + 1)
            shade = MODEL if track.part is None else colour(track.part)
            strip.broken_barh(spans, (low + 0.08, high - low - 0.16), color=shade, linewidth=0)
    for leg in legs[1:]:
        strip.axvline(axis.of(np.array([leg.first - 1]))[0], color="white", linewidth=2)
    strip.set(ylim=(parts, 0), yticks=[])
    strip.set_ylabel("learns", rotation=0, ha="right", va="center", fontsize=9)
    strip.tick_params(bottom=False, labelbottom=False)
    strip.grid(False)
    for spine in strip.spines.values():
        spine.set_visible(False)


def _name_phases(strip: Axes, axis: _Axis, legs: list[Leg]) -> None:
    """Names above the strip; where there is no room, numbers."""
    low, high = strip.get_xlim()
    for leg in legs:
        start, end = axis.of(np.array([leg.first - 1, leg.last]))
        room = (end - start) / max(high - low, 1e-12) * 60  # letters
        text = next((text for text in (f"{leg.number}: {leg.name}", str(leg.number)) if len(text) < room), "")
        strip.annotate(
            text, ((start + end) / 2, 1), (0, 2), ("data", "axes fraction"), "offset points", ha="center", fontsize=9.5
        )


def _frame(axes: Axes, smooth: Numbers, points: Numbers) -> bool:
    """Sets the frame by the smoothed lines and points, not by single steps; True if some of them lie above it."""
    values = np.concatenate([smooth, points])
    values = values[np.isfinite(values)]
    if not len(values):
        return False
    low, usual, most = float(values.min()), float(np.quantile(values, 0.98)), float(values.max())
    high = most if most - low < 1.5 * (usual - low) else usual
    room = 0.06 * max(high - low, 1e-3)
    axes.set_ylim(low - room, high + room)
    return high < most


def _label(story: Story, track: Track) -> str:
    if track.part is None:
        return "end to end"
    return f"behind part {track.part + 1}" + (" (the model)" if track.part + 1 == story.config.cut.parts else "")


def _smoothed(values: Numbers, window: int) -> Numbers:
    """A moving mean; what is not a number is passed over."""
    window = min(window, len(values))
    known = np.isfinite(values)
    kernel = np.ones(window)
    count = np.convolve(known.astype(np.float64), kernel, "same")
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _spread(values: list[float]) -> Numbers:
    """A single value becomes two, so that it can be seen as an area."""
    return np.array(values if len(values) > 1 else values * 2, dtype=np.float64)


def _model(story: Story) -> list[dict[str, Any]]:
    return [line for line in story.evaluations if line["complete"]]


def _time_unit(seconds: float) -> tuple[str, float]:
    return next((unit, size) for unit, size, most in _TIMES if seconds < most)


def _byte_unit(size: float) -> tuple[str, float]:
    return next((unit, divisor) for unit, divisor in _BYTES if size >= divisor or divisor == 1)


_TIMES = (("ms", 1e-3, 1.0), ("s", 1.0, 180.0), ("min", 60.0, 10800.0), ("h", 3600.0, float("inf")))
_BYTES = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("bytes", 1.0))
