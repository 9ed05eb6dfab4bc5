"""The files of a run directory → checked values: settings, metrics, evaluations, checkpoints, result.

What a file does not say is None, never a guess; a damaged file is a ValueError that names it. The last line of a
stream may be half written, since the run may be going on: it is left out.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from ..config import Config, from_dict, read_file
from ..storage import END_TO_END, EndedPhase, Manifest, RunDirectory, checkpoint, part_stream, read_plain

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_LEDGER = {"log_det", "split_prior", "prior", "bits_per_dim"}
_WHOLE, _FLOATS = ("step", "phase"), ("time", "bits_per_dim", "wait_s", "send_s", "compute_s")


@with_config(ConfigDict(extra="allow", strict=True))
class _Result(TypedDict):
    test_bits_per_dim: float | None
    ledger: dict[str, Any]
    phases: list[EndedPhase]


_RESULT = TypeAdapter(_Result)


@dataclass(frozen=True)
class PartMetrics:
    """The metrics of one part as columns, with a row per batch that it took.

    Attributes:
        part: position of the part from 0; None for the whole model, end to end.
        step, phase: of the run, from 1.
        learn: whether the part learned from the batch, or ran forward only.
        time: seconds since 1970.
        bits: training bits/dim of the flow truncated after the part.
        wait, send, compute: seconds of the batch.
        drift: the largest error of an inverted input; NaN where nothing was inverted.
    """

    part: int | None
    step: Integers
    phase: Integers
    learn: NDArray[np.bool_]
    time: Floats
    bits: Floats
    wait: Floats
    send: Floats
    compute: Floats
    drift: Floats

    @property
    def name(self) -> str:
        """For people."""
        return "end to end" if self.part is None else f"part {self.part + 1}"

    def in_phase(self, number: int) -> "PartMetrics":
        rows = self.phase == number
        return PartMetrics(self.part, *(getattr(self, name)[rows] for name in list(vars(self))[1:]))


class SavedCheckpoint(NamedTuple):
    """A checkpoint on disk: its size, its model's bits/dim if evaluated, or why its manifest cannot be read."""

    step: int
    bits_per_dim: float | None
    bytes: int
    wrong: str | None


def read_bytes(file: Path) -> bytes:
    """The contents of a file, or a ValueError."""
    try:
        return read_plain(file, sys.maxsize)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}).") from error


def read_settings(file: Path) -> Config:
    """The settings that a run has written down."""
    try:
        return from_dict(read_file(file))
    except ValueError as error:
        raise ValueError(f"The settings in {file} are damaged: {error}") from error


def read_lines(file: Path, numbers: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a stream in order of their steps, the last of each step; all must have these `numbers`."""
    if not file.is_file():
        return []
    found = {}
    for number, line in enumerate(read_bytes(file).splitlines(keepends=True), 1):
        try:
            values = json.loads(line)
            figures = {name: values[name] for name in numbers} | {"drift": values.get("drift", 0)}
            if unfit := [name for name, value in figures.items() if not _is_figure(name, value)]:
                raise ValueError(f"{unfit[0]} cannot be {str(figures[unfit[0]])[:20]}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if not line.endswith(b"\n"):
                break
            raise ValueError(f"{file} is damaged: line {number} is no line of metrics ({error}).") from error
        found[values["step"]] = values
    return [found[step] for step in sorted(found)]


def _is_figure(name: str, value: object) -> bool:
    """Whether a file may say this of a step, a time (seconds since 1970, before the year 5000) or another figure."""
    if name in _WHOLE:
        return isinstance(value, int) and 0 <= value < 1 << 62
    return isinstance(value, int | float) and (0 < value < 1e11 or name not in ("time", "epoch"))


def read_evaluations(file: Path) -> list[dict[str, Any]]:
    """The evaluations while the run trained, in order."""
    lines = read_lines(file, ("step", "epoch", "dequantisation"))
    for line in lines:
        parts = line.get("parts") or [None]
        sound = isinstance(parts, list) and all(isinstance(part, dict) for part in parts)
        if (
            not sound
            or "complete" not in line
            or not all(_is_figure(n, part.get(n)) for part in parts for n in _LEDGER)
        ):
            raise ValueError(f"{file} is damaged: the line of step {line['step']} is no evaluation.")
    return lines


def read_metrics(run: RunDirectory) -> list[PartMetrics]:
    """The metrics of the parts in order, then of the whole model end to end; only those that have figures."""
    names: list[tuple[int | None, str]] = [(part, part_stream(part)) for part in run.recorded_parts()]
    streams = []
    for part, name in [*names, (None, END_TO_END)]:
        if lines := read_lines(run.stream(name), (*_WHOLE, "learn", *_FLOATS)):
            step, phase = (np.array([line[name] for line in lines], dtype=np.int64) for name in _WHOLE)
            learn = np.array([line["learn"] for line in lines], dtype=np.bool_)
            floats = ([line.get(name, np.nan) for line in lines] for name in (*_FLOATS, "drift"))
            streams.append(PartMetrics(part, step, phase, learn, *(np.array(column, np.float64) for column in floats)))
    return streams


def read_result(file: Path) -> dict[str, Any] | None:
    """What a finished run says; None where there is no such file."""
    if not file.is_file():
        return None
    try:
        return dict(_RESULT.validate_json(read_bytes(file)))
    except ValidationError as error:
        raise ValueError(f"{file} is damaged: it is no result of a run.") from error


def read_checkpoints(run: RunDirectory) -> tuple[list[SavedCheckpoint], Manifest | None]:
    """The checkpoints on disk in order, and the newest readable manifest."""
    saved, newest = [], None
    for step in run.saved_steps():
        directory, bits, wrong = run.checkpoint(step), None, None
        try:
            newest = checkpoint.read_manifest(directory)
            bits = newest.bits_per_dim
        except (OSError, ValueError) as error:
            wrong = str(error)
        size = sum(path.stat().st_size for path in directory.glob("*") if path.is_file())
        saved.append(SavedCheckpoint(step, bits, size, wrong))
    return saved, newest
