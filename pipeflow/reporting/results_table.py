"""The tables of a report, as cells: what runs have reached, a column per run, and the checkpoints of one run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .run_history import RunHistory
from .run_summary import cut_in_words, last_evaluation, phase_in_words

NOT_KNOWN = "–"
_MIB = 2.0**20


class Entry(NamedTuple):
    """A piece of a cell: text for people and, where it is a number, all its digits for programs."""

    text: str
    value: float | None = None


class Cell(NamedTuple):
    """Entries, separated by commas, and a note below them."""

    entries: Sequence[Entry]
    note: str = ""


def number(value: float, digits: int) -> Entry:
    """A number with so many digits after the point."""
    return Entry(f"{value:,.{digits}f}", float(value))


def results(histories: Sequence[RunHistory]) -> list[tuple[str, list[Cell]]]:
    """(name, a cell per run) of each row of the main table."""
    rows = {
        "approach": [_text(", then ".join(map(phase_in_words, run.config.phases))) for run in histories],
        "parts": [_text(str(run.config.cut.parts)) for run in histories],
        "cut": [_text(cut_in_words(run.config)) for run in histories],
        "learning rate": [_learning_rates(run) for run in histories],
        "test bits/dim": [_test_bits(run) for run in histories],
        "minutes": [_minutes(run) for run in histories],
        "images/s, by phase": [_images_per_s(run) for run in histories],
        "peak memory by rank (MiB)": [_of_ranks(run, "peak_memory_bytes") for run in histories],
        "peak GPU memory by rank (MiB)": [_of_ranks(run, "peak_gpu_memory_bytes") for run in histories],
        "forward by parts, computed (MiB)": [_forward(run) for run in histories],
        "backward by parts (bytes)": [Cell([Entry("0")], "by construction") for _ in histories],
        "sent by rank, measured (MiB)": [_of_ranks(run, "bytes_sent") for run in histories],
        "received by rank, measured (MiB)": [_of_ranks(run, "bytes_received") for run in histories],
    }
    if any(run.config.activations == "invert" for run in histories):
        rows["drift of inverted inputs, at most, by phase"] = [_drift(run) for run in histories]
    return list(rows.items())


def checkpoint_rows(history: RunHistory) -> list[tuple[list[Entry], str]]:
    """(entries, what is wrong with it) of each checkpoint on disk."""
    saves = {line["step"]: line for line in history.saves}
    rows = []
    for saved in history.checkpoints:
        save = saves.get(saved.step)
        entries = [
            Entry(str(saved.step)),
            Entry(NOT_KNOWN) if saved.bits_per_dim is None else number(saved.bits_per_dim, 4),
            number(saved.bytes / _MIB, 2),
            number(1e3 * save["stall_s"], 2) if save else Entry(NOT_KNOWN),
            number(save["write_s"], 2) if save else Entry(NOT_KNOWN),
        ]
        rows.append((entries, saved.wrong or ""))
    return rows


def model_bits(history: RunHistory) -> Entry:
    """The latest test bits/dim of the model, if its last part has begun to learn."""
    line = last_evaluation(history)
    return number(line["bits_per_dim"], 4) if line and line["complete"] else Entry(NOT_KNOWN)


def _text(text: str) -> Cell:
    return Cell([Entry(text)])


def _alike(entries: Iterable[Entry]) -> Cell:
    """An entry per phase; one alone where all are alike."""
    entries = list(entries)
    return Cell(entries[:1] if len(set(entries)) == 1 else entries)


def _per_phase(history: RunHistory, known: Mapping[int, Entry]) -> Cell:
    """A cell of the phases whose number is in `known`, and of the others, of which nothing is known."""
    numbers = range(1, len(history.config.phases) + 1)
    return _alike(known.get(number, Entry(NOT_KNOWN)) for number in numbers)


def _learning_rates(history: RunHistory) -> Cell:
    rates = [phase.lr if isinstance(phase.lr, list) else [phase.lr] for phase in history.config.phases]
    return _alike(Entry(" / ".join(f"{rate:g}" for rate in rate_of_parts)) for rate_of_parts in rates)


def _test_bits(history: RunHistory) -> Cell:
    bits, line = model_bits(history), last_evaluation(history)
    if line is None or bits.value is None or history.result:
        return Cell([bits])
    return Cell([bits], f"at step {line['step']}; not finished")


def _minutes(history: RunHistory) -> Cell:
    if history.result:
        return Cell([number(sum(phase["seconds"] for phase in history.result["phases"]) / 60, 2)])
    if history.newest is None:
        return _text(NOT_KNOWN)
    seconds = sum(phase["seconds"] for phase in history.newest.phases) + history.newest.elapsed["seconds"]
    return Cell([number(seconds / 60, 2)], f"until step {history.newest.step}; not finished")


def _images_per_s(history: RunHistory) -> Cell:
    ended = {phase.number: phase.ended["images_per_s"] for phase in history.phases if phase.ended}
    return _per_phase(history, {phase: number(speed, 0) for phase, speed in ended.items() if speed is not None})


def _drift(history: RunHistory) -> Cell:
    """The largest drift of any part in each phase."""
    largest: dict[int, Entry] = {}
    for phase in history.phases:
        drifts = np.concatenate([stream.in_phase(phase.number).drift for stream in history.streams])
        if len(finite := drifts[np.isfinite(drifts)]):
            largest[phase.number] = Entry(f"{finite.max():.1e}", float(finite.max()))
    return _per_phase(history, largest)


def _of_ranks(history: RunHistory, name: str) -> Cell:
    """Bytes by rank; not known where all are 0, which is written where nothing can be measured."""
    sizes = (history.result or {}).get(name) or []
    alone = name.startswith("bytes") and len(sizes) == 1  # one process sends nothing, and that is a measurement
    return Cell([number(size / _MIB, 1) for size in sizes]) if any(sizes) or alone else _text(NOT_KNOWN)


def _forward(history: RunHistory) -> Cell:
    if history.sent is None:
        return _text(NOT_KNOWN)
    return Cell([number(history.sent[-1] / _MIB, 2)], "" if history.result else "so far")
