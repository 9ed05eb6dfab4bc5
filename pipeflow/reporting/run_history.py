"""A run directory → what there is to tell of it, whether the run is finished, goes on or was interrupted.

A report takes everything from here, and here everything comes from files: nothing is trained, and no weights are
loaded. What the files do not say is None, never a guess.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ..config import Config, PhaseConfig, from_dict, phase_steps
from ..flow import Event
from ..model import cut_steps, glow_steps, scheme_cut
from ..storage import Manifest, checkpoint

Numbers = NDArray[np.float64]
Whole = NDArray[np.int64]
PAUSE = 20  # a step that took so many times the median of its phase was waiting for something else than training
_ENTRIES = {"log_det", "split_prior", "prior", "bits_per_dim"}
_FIGURES = ("time", "bits_per_dim", "wait_s", "send_s", "compute_s")


@dataclass(frozen=True)
class Track:
    """One stream of metrics, as columns; a line a batch that the part took.

    Attributes:
        part: position of the part from 0; None for the whole model, end to end.
        step, phase: of the run, from 1.
        learn: whether the part learned from the batch, or ran forward only.
        time: seconds since 1970.
        bits: training bits/dim of the flow truncated behind the part.
        wait, send, compute: seconds of the tick.
    """

    part: int | None
    step: Whole
    phase: Whole
    learn: NDArray[np.bool_]
    time: Numbers
    bits: Numbers
    wait: Numbers
    send: Numbers
    compute: Numbers

    @property
    def name(self) -> str:
        """For people."""
        return "end to end" if self.part is None else f"part {self.part + 1}"

    def within(self, leg: "Leg") -> "Track":
        """What of it lies in a phase."""
        rows = self.phase == leg.number
        return Track(self.part, *(getattr(self, name)[rows] for name in list(vars(self))[1:]))


@dataclass(frozen=True)
class Leg:
    """A phase, as far as it has been carried out.

    Attributes:
        number: of the phase, from 1.
        phase: its settings.
        first, last: steps of the run that belong to it.
        ended: what the run says of it after its end: "seconds", "train_seconds", "images_per_s".
    """

    number: int
    phase: PhaseConfig
    first: int
    last: int
    ended: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The schedule, for people."""
        return self.phase.schedule.replace("_", " ")


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        step: of the run.
        bits_per_dim: of the model on the test split; None where it was not evaluated.
        bytes: size on disk.
        wrong: why it cannot be read, if it cannot.
    """

    step: int
    bits_per_dim: float | None
    bytes: int
    wrong: str | None


@dataclass(frozen=True)
class Story:
    """A run, as its files tell it.

    Attributes:
        directory, name: of the run.
        config: its settings; `settings` is the same as it stands in the file.
        until: (step, settings) that held until a step, before these; in order.
        legs: the phases that have begun, in order.
        tracks: the parts in order, then end to end; only those that have figures.
        evaluations: lines of the test split.
        saves: lines about the writing of checkpoints.
        saved: the checkpoints that are on disk, in order.
        newest: what the newest readable one says of itself.
        result: of a finished run.
        samples: (step, PNG) of the sheets of samples.
        steps, seconds, sent: for every step taken, in order: its number, seconds of training until its end, and bytes
            of latents that parts have handed forward until then; the last is None where the image's shape is unknown.
        paused: seconds of pauses that `seconds` leaves out.
    """

    directory: Path
    name: str
    config: Config
    settings: str
    until: list[tuple[int, Config]]
    legs: list[Leg]
    tracks: list[Track]
    evaluations: list[dict[str, Any]]
    saves: list[dict[str, Any]]
    saved: list[Saved]
    newest: Manifest | None
    result: dict[str, Any] | None
    samples: list[tuple[int, bytes]]
    steps: Whole
    seconds: Numbers
    sent: Numbers | None
    paused: float

    @property
    def epoch_steps(self) -> float | None:
        """Batches in a pass over the training images; None before the first evaluation."""
        return self.evaluations[-1]["step"] / self.evaluations[-1]["epoch"] if self.evaluations else None

    @property
    def planned(self) -> int | None:
        """The step at which the run will be complete, or was; None where that is not known yet."""
        if not self.epoch_steps:
            return None
        batch, begun = self.config.data.batch, self.newest.begun if self.newest else self.legs[0].first - 1
        images = round(self.epoch_steps * batch)
        return begun + sum(phase_steps(phase, images, batch) for phase in self.config.phases)

    def at(self, column: Numbers, step: "Whole | Sequence[int]") -> Numbers:
        """The value of `seconds` or `sent` at the end of steps; 0 before the first."""
        known = np.concatenate([[self.steps[0] - 1], self.steps])
        values: Numbers = np.interp(step, known, np.concatenate([[0.0], column]))
        return values


def read(place: str | Path) -> Story:
    """What the files of a run directory tell.

    Args:
        place: a run directory.

    Raises:
        ValueError: it is no run, has no metrics yet, or a file of it is damaged.
    """
    run = Path(place)
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run directory: it has no config.yaml.")
    config = _config(run / "config.yaml")
    names = [path.stem for path in (run / "metrics").glob("part-*.jsonl") if re.fullmatch(r"part-\d+", path.stem)]
    parts = sorted(int(name[5:]) - 1 for name in names)
    found = [_track(run / "metrics" / f"part-{part + 1}.jsonl", part) for part in parts]
    found.append(_track(run / "metrics" / "end_to_end.jsonl", None))
    tracks = [track for track in found if len(track.step)]
    if not tracks:
        raise ValueError(f"{run} has no metrics yet: no step has been written down. Ask again when it has trained.")
    evaluations = _evaluations(run / "metrics" / "evaluation.jsonl")
    saved, newest = _checkpoints(run)
    result = _result(run / "result.json", evaluations, tracks, len(config.phases))
    ended = result["phases"] if result else newest.phases if newest else []
    legs = _legs(run, config, tracks, ended)
    steps = np.unique(np.concatenate([track.step for track in tracks]))
    seconds, paused = _clock(steps, tracks, legs)
    old = [(int(re.sub(r"\D", "", path.stem)), path) for path in run.glob("config-until-step-*.yaml")]
    until = [(step, _config(path)) for step, path in sorted(old)]
    return Story(
        directory=run,
        name=run.resolve().name,
        config=config,
        settings=_read(run / "config.yaml").decode(),
        until=until,
        legs=legs,
        tracks=tracks,
        evaluations=evaluations,
        saves=_lines(run / "metrics" / "checkpoints.jsonl", ("step", "stall_s", "write_s", "bytes")),
        saved=saved,
        newest=newest,
        result=result,
        samples=_samples(run),
        steps=steps,
        seconds=seconds,
        sent=(
            _sent(steps, tracks, [*until, (int(steps[-1]), config)], newest.image)
            if newest and config.flow == "glow"  # the shapes inside a flow of a script's own only that script knows
            else None
        ),
        paused=paused,
    )


def border_bytes(config: Config, image: Sequence[int]) -> list[int]:
    """Bytes of one packet at each border, with the latents as `parallel.wire` sends them.

    Args:
        config: model, cut and batch.
        image: channels, height and width.
    """
    channels, height, width = image
    event: Event = (channels, height, width)
    steps = glow_steps(replace(config.glow, hidden=1), event, config.seed)  # shapes do not depend on the width
    pieces = cut_steps(steps, scheme_cut(config.cut, config.glow.levels, config.glow.steps), event)
    return [config.data.batch * config.parallel.bytes_per_image(piece.event_out) for piece in pieces[:-1]]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}).") from error


def _config(file: Path) -> Config:
    try:
        found = yaml.safe_load(_read(file))
        if not isinstance(found, dict):
            raise ValueError("it holds no names and values")
        return from_dict(found)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The settings in {file} are damaged: {error}") from error


def _lines(file: Path, numbers: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a stream, one a step, in order; `numbers` are in each. The last may be half written: it is left."""
    if not file.is_file():
        return []
    found = {}
    for number, line in enumerate(_read(file).splitlines(keepends=True), 1):
        try:
            values = json.loads(line)
            if not all(isinstance(values[name], int | float) for name in numbers):
                raise ValueError("a figure is none")
        except (ValueError, KeyError, TypeError) as error:
            if not line.endswith(b"\n"):
                break
            raise ValueError(f"{file} is damaged: line {number} is no line of metrics ({error}).") from error
        found[values["step"]] = values
    return [found[step] for step in sorted(found)]


def _evaluations(file: Path) -> list[dict[str, Any]]:
    lines = _lines(file, ("step", "epoch", "dequantisation"))
    for line in lines:
        parts = line.get("parts")
        sound = isinstance(parts, list) and parts and all(isinstance(part, dict) for part in parts)
        if not sound or "complete" not in line or any(_ENTRIES - part.keys() for part in line["parts"]):
            raise ValueError(f"{file} is damaged: the line of step {line['step']} is no evaluation.")
    return lines


def _track(file: Path, part: int | None) -> Track:
    lines = _lines(file, ("step", "phase", "learn", *_FIGURES))
    step, phase = (np.array([line[name] for line in lines], dtype=np.int64) for name in ("step", "phase"))
    learn = np.array([line["learn"] for line in lines], dtype=np.bool_)
    time, bits, wait, send, compute = (np.array([line[name] for line in lines], dtype=np.float64) for name in _FIGURES)
    return Track(part, step, phase, learn, time, bits, wait, send, compute)


def _result(file: Path, evaluations: list[dict[str, Any]], tracks: list[Track], phases: int) -> dict[str, Any] | None:
    """What a finished run says; None where it is not finished, or went on after it was."""
    if not file.is_file():
        return None
    try:
        found = json.loads(_read(file))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"test_bits_per_dim", "ledger", "phases"} <= found.keys():
        raise ValueError(f"{file} is damaged: it is no result of a run.")
    reached = max(int(track.step[-1]) for track in tracks)
    goes_on = len(found["phases"]) < phases or bool(evaluations and evaluations[-1]["step"] < reached)
    return None if goes_on else found


def _legs(run: Path, config: Config, tracks: list[Track], ended: list[dict[str, Any]]) -> list[Leg]:
    legs = []
    for number in np.unique(np.concatenate([track.phase for track in tracks])).tolist():
        if not 1 <= number <= len(config.phases):
            raise ValueError(f"{run} is damaged: its metrics tell of phase {number}, which config.yaml does not have.")
        steps = np.concatenate([track.step[track.phase == number] for track in tracks])
        said = ended[number - 1] if number <= len(ended) else None
        legs.append(Leg(number, config.phases[number - 1], int(steps.min()), int(steps.max()), said))
    return legs


def _clock(steps: Whole, tracks: list[Track], legs: list[Leg]) -> tuple[Numbers, float]:
    """Seconds of training until the end of every step, and the seconds of pauses that are left out of them."""
    ends = np.zeros(len(steps))
    for track in tracks:
        rows = np.searchsorted(steps, track.step)
        ends[rows] = np.maximum(ends[rows], track.time)
    took = np.diff(np.maximum.accumulate(ends), prepend=ends[0])
    paused = 0.0
    for leg in legs:
        rows = np.flatnonzero((steps >= leg.first) & (steps <= leg.last))
        pauses = rows[took[rows] > PAUSE * np.median(took[rows])]
        paused += float(took[pauses].sum())
        took[pauses] = 0.0
    return np.cumsum(took), paused


def _sent(steps: Whole, tracks: list[Track], settings: list[tuple[int, Config]], image: list[int]) -> Numbers:
    """Bytes forward until every step: a packet crosses a border where the part behind it took one."""
    sent, first = np.zeros(len(steps)), 0
    for until, config in settings:
        costs = border_bytes(config, image)
        for track in tracks:
            if track.part and track.part <= len(costs):
                taken = track.step[(track.step > first) & (track.step <= until)]
                sent[np.searchsorted(steps, taken)] += costs[track.part - 1]
        first = until
    return np.cumsum(sent)


def _checkpoints(run: Path) -> tuple[list[Saved], Manifest | None]:
    saved, newest = [], None
    for step in checkpoint.steps_saved(run):
        directory, bits, wrong = run / "checkpoints" / f"step-{step}", None, None
        try:
            newest = checkpoint.read_manifest(directory)
            bits = newest.test_bits_per_dim
        except (OSError, ValueError) as error:
            wrong = str(error)
        size = sum(path.stat().st_size for path in directory.glob("*") if path.is_file())
        saved.append(Saved(step, bits, size, wrong))
    return saved, newest


def _samples(run: Path) -> list[tuple[int, bytes]]:
    sheets = [path for path in (run / "samples").glob("step-*.png") if re.fullmatch(r"step-\d+", path.stem)]
    return sorted((int(path.stem[5:]), _read(path)) for path in sheets)
