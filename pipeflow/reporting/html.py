"""The page of a report: histories of runs and their figures → one HTML file that needs nothing else.

Notebooks and TensorBoard need something that runs. This page has no script and no reference to anything outside it:
it can be mailed, printed, put beside a paper, and read years later. Its words and its looks are in page.html.jinja;
here is what is computed for them.
"""

from base64 import b64encode
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..config import Config
from ..model import FAMILIES, family_cut
from ..units import amount, duration
from .drawing import REPORT_MAKER, Drawing
from .run_history import RunHistory
from .training_clock import PAUSE


def page(histories: Sequence[RunHistory], drawings: Sequence[Sequence[Drawing]], compared: Drawing | None) -> str:
    """The whole HTML file.

    Args:
        histories: the runs, in the order in which they are shown.
        drawings: the figures of each.
        compared: the figure of all of them, if there are several.
    """
    templates = Environment(
        loader=PackageLoader("pipeflow.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters |= {"amount": amount, "duration": duration, "number": number, "mebibytes": mebibytes}
    templates.filters |= {"cut": cut_in_words, "slowest_parts": slowest_parts, "minutes": minutes, "of_ranks": of_ranks}
    templates.filters |= {"learning_rates": learning_rates, "speeds": speeds, "drifts": drifts}
    templates.filters["flow"] = lambda config: str(config.family) if config.flow in FAMILIES else config.flow
    templates.filters["data_url"] = lambda png: f"data:image/png;base64,{b64encode(png).decode()}"
    figures = [{figure.file.rsplit("-", 1)[-1]: figure for figure in of_run} for of_run in drawings]
    data_sets = [run.config.data for run in histories]
    return templates.get_template("page.html.jinja").render(
        maker=REPORT_MAKER,
        pause=PAUSE,
        title=f"{len(histories)} runs compared" if len(histories) > 1 else histories[0].name,
        runs=histories,
        compared=compared,
        kinds_of_images=len({(data.name, data.image_size, data.bits) for data in data_sets}),
        figures=figures,
    )


def number(value: float | None, form: str) -> Markup:
    """A number for people, by a format such as ",.2f", with all its digits for programs; "–" for None."""
    if value is None:
        return Markup("–")
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), format(value, form))


def mebibytes(size: float, digits: int = 2) -> Markup:
    """Bytes in MiB."""
    return number(size / 2.0**20, f",.{digits}f")


def cut_in_words(config: Config) -> str:
    """Flow steps of each part, such as "1 + 3 + 2", as far as the settings say."""
    if config.flow not in FAMILIES:
        return f"borders at {', '.join(map(str, config.cut.at))}" if config.cut.at else config.cut.scheme
    borders = [0, *family_cut(config.cut, config.family), max(config.family.levels, 1) * config.family.steps]
    return " + ".join(str(after - before) for before, after in pairwise(borders))


def minutes(history: RunHistory) -> float | None:
    """Minutes until the end, or until the newest checkpoint; None before that."""
    if history.result:
        return sum(float(phase["seconds"]) for phase in history.result["phases"]) / 60
    if history.newest is None:
        return None
    return (sum(float(phase["seconds"]) for phase in history.newest.phases) + history.newest.elapsed["seconds"]) / 60


def learning_rates(history: RunHistory) -> list[str]:
    """The learning rates of each phase."""
    rates = [phase.lr if isinstance(phase.lr, list) else [phase.lr] for phase in history.config.phases]
    return [" / ".join(f"{rate:g}" for rate in of_parts) for of_parts in rates]


def speeds(history: RunHistory) -> list[float | None]:
    """Images per second of each phase of the settings, as far as they have ended."""
    ended = {phase.number: phase.ended["images_per_s"] for phase in history.phases if phase.ended}
    return [ended.get(number) for number in range(1, len(history.config.phases) + 1)]


def drifts(history: RunHistory) -> list[float | None]:
    """The largest drift of any part in each phase of the settings, where inputs were inverted."""
    found: list[float | None] = []
    for phase in range(1, len(history.config.phases) + 1):
        values = np.concatenate([stream.in_phase(phase).drift for stream in history.streams])
        finite = values[np.isfinite(values)]
        found.append(float(finite.max()) if len(finite) else None)
    return found


def of_ranks(history: RunHistory, name: str) -> list[float]:
    """Bytes by rank; none where all are 0, which is written where nothing can be measured."""
    sizes: list[float] = (history.result or {}).get(name) or []
    alone = name.startswith("bytes") and len(sizes) == 1  # one process sends nothing, and that is a measurement
    return sizes if any(sizes) or alone else []


def slowest_parts(history: RunHistory) -> list[dict[str, Any]]:
    """For each phase by parts: the phase, the part that computes longest, its ms a step and its share of all parts'."""
    found = []
    for phase in history.phases:
        streams = [stream.in_phase(phase.number) for stream in history.streams if stream.part is not None]
        seconds = {stream.name: float(stream.compute.sum()) for stream in streams if len(stream.step)}
        steps = {stream.name: len(stream.step) for stream in streams}
        if len(seconds) > 1 and max(seconds.values()) > 0:
            part = max(seconds, key=seconds.__getitem__)
            share = seconds[part] / sum(seconds.values())
            found.append({"phase": phase, "part": part, "ms": 1e3 * seconds[part] / steps[part], "share": share})
    return found
