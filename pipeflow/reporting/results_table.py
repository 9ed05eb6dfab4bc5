"""The main table of a report: what runs have reached, a column per run."""

from collections.abc import Iterable, Mapping

import numpy as np
from markupsafe import Markup, escape

from .run_history import RunHistory
from .run_summary import cut_in_words, phase_in_words

NOT_KNOWN = Markup("–")
_MIB = 2.0**20


def results_column(run: RunHistory) -> dict[str, Markup]:
    """Name of a row → the cell of this run."""
    cells = {
        "approach": escape(", then ".join(map(phase_in_words, run.config.phases))),
        "parts": escape(run.config.cut.parts),
        "cut": escape(cut_in_words(run.config)),
        "learning rate": _learning_rates(run),
        "test bits/dim": _bits(run, "test"),
        f"{run.split} bits/dim": _bits(run, run.split),
        "minutes": _minutes(run),
        "images/s, by phase": _images_per_s(run),
        "peak memory by rank (MiB)": _of_ranks(run, "peak_memory_bytes"),
        "peak GPU memory by rank (MiB)": _of_ranks(run, "peak_gpu_memory_bytes"),
        "forward by parts, computed (MiB)": _forward(run),
        "backward by parts (bytes)": _noted("0", "by construction"),
        "sent by rank, measured (MiB)": _of_ranks(run, "bytes_sent"),
        "received by rank, measured (MiB)": _of_ranks(run, "bytes_received"),
    }
    if run.config.activations == "invert":
        cells["drift of inverted inputs, at most, by phase"] = _drift(run)
    return cells


def number(value: float, form: str) -> Markup:
    """A number for people, by a format such as ",.2f", with all its digits for programs."""
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), format(value, form))


def mebibytes(size: float, digits: int = 2) -> Markup:
    """Bytes in MiB."""
    return number(size / _MIB, f",.{digits}f")


def model_bits(history: RunHistory) -> Markup:
    """The latest bits/dim of the model, on the split `last_split`, if there is one yet; of no density."""
    line = history.last_evaluation
    known = line and line["complete"] and not history.config.noise
    return number(line["bits_per_dim"], ",.4f") if line and known else NOT_KNOWN


def _noted(content: str, note: str) -> Markup:
    return Markup("{}<small>{}</small>").format(content, note)


def _by_phase(cells: Iterable[Markup]) -> Markup:
    """A cell per phase; one alone where all are alike."""
    cells = list(cells)
    return cells[0] if len(set(cells)) == 1 else Markup(", ").join(cells)


def _of_phases(history: RunHistory, known: Mapping[int, Markup]) -> Markup:
    return _by_phase(known.get(number, NOT_KNOWN) for number in range(1, len(history.config.phases) + 1))


def _learning_rates(history: RunHistory) -> Markup:
    rates = [phase.lr if isinstance(phase.lr, list) else [phase.lr] for phase in history.config.phases]
    return _by_phase(escape(" / ".join(f"{rate:g}" for rate in of_parts)) for of_parts in rates)


def _bits(history: RunHistory, split: str) -> Markup:
    if split != history.last_split:
        lines = history.model_evaluations if split == history.split else []
        return number(lines[-1]["bits_per_dim"], ",.4f") if lines else NOT_KNOWN
    bits, line = model_bits(history), history.last_evaluation
    if line is None or bits is NOT_KNOWN or history.result:
        return bits
    return _noted(bits, f"at step {line['step']}; not finished")


def _minutes(history: RunHistory) -> Markup:
    if history.result:
        return number(sum(phase["seconds"] for phase in history.result["phases"]) / 60, ",.2f")
    if history.newest is None:
        return NOT_KNOWN
    seconds = sum(phase["seconds"] for phase in history.newest.phases) + history.newest.elapsed["seconds"]
    return _noted(number(seconds / 60, ",.2f"), f"until step {history.newest.step}; not finished")


def _images_per_s(history: RunHistory) -> Markup:
    ended = {phase.number: phase.ended["images_per_s"] for phase in history.phases if phase.ended}
    return _of_phases(history, {phase: number(speed, ",.0f") for phase, speed in ended.items() if speed is not None})


def _drift(history: RunHistory) -> Markup:
    """The largest drift of any part in each phase."""
    largest = {}
    for phase in history.phases:
        drifts = np.concatenate([stream.in_phase(phase.number).drift for stream in history.streams])
        if len(finite := drifts[np.isfinite(drifts)]):
            largest[phase.number] = number(finite.max(), ".1e")
    return _of_phases(history, largest)


def _of_ranks(history: RunHistory, name: str) -> Markup:
    """Bytes by rank; not known where all are 0, which is written where nothing can be measured."""
    sizes = (history.result or {}).get(name) or []
    alone = name.startswith("bytes") and len(sizes) == 1  # one process sends nothing, and that is a measurement
    return Markup(", ").join(mebibytes(size, 1) for size in sizes) if any(sizes) or alone else NOT_KNOWN


def _forward(history: RunHistory) -> Markup:
    if history.sent is None:
        return NOT_KNOWN
    sent = mebibytes(history.sent[-1])
    return sent if history.result else _noted(sent, "so far")
