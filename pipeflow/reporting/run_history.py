"""A run directory → the history of the run, whether it is finished, goes on or was interrupted.

A report takes everything from here, and here everything comes from files (run_files.py): nothing is trained, and no
weights are loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import Config, PhaseConfig, phase_steps
from ..model import FAMILIES
from ..storage import CHECKPOINTS, EVALUATION, Manifest, RunDirectory
from . import run_files
from .run_files import Floats, Integers, PartMetrics, SavedCheckpoint
from .training_clock import bytes_handed_forward, training_seconds


class PhaseHistory(NamedTuple):
    """A phase, as far as it has been carried out.

    Attributes:
        number, config: of the phase, from 1, and its settings.
        first, last: steps of the run that belong to it.
        ended: what the run says of it after its end: "seconds", "train_seconds", "images_per_s"; None before.
    """

    number: int
    config: PhaseConfig
    first: int
    last: int
    ended: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The schedule, for people."""
        return self.config.schedule.replace("_", " ")


@dataclass(frozen=True)
class RunHistory:
    """What the files of a run say; every list is in order.

    Attributes:
        directory, name: of the run.
        config: its settings; `config_yaml` is the file that holds them.
        earlier_configs: (step, settings) that held until a step, before these.
        phases: those that have begun.
        streams: metrics of the parts, then end to end; only those that have figures.
        evaluations: on `split`.
        saves: step → how long its checkpoint held training up and was written.
        checkpoints: those that are on disk.
        newest: the newest readable manifest.
        result: of a finished run.
        samples: (step, PNG) of the sheets of samples.
        steps, seconds, sent: for every step taken: its number, seconds of training until its end, and bytes of latents
            that parts have handed forward until then; the last is None where the image's shape is unknown.
        paused: seconds of pauses that `seconds` leaves out.
    """

    directory: Path
    name: str
    config: Config
    config_yaml: str
    earlier_configs: list[tuple[int, Config]]
    phases: list[PhaseHistory]
    streams: list[PartMetrics]
    evaluations: list[dict[str, Any]]
    saves: dict[int, dict[str, Any]]
    checkpoints: list[SavedCheckpoint]
    newest: Manifest | None
    result: dict[str, Any] | None
    samples: list[tuple[int, bytes]]
    steps: Integers
    seconds: Floats
    sent: Floats | None
    paused: float

    @property
    def split(self) -> str:
        """The split on which the run is evaluated while it trains."""
        return "validation" if self.config.data.validation else "test"

    @property
    def last_split(self) -> str:
        return "test" if self.result else self.split

    @property
    def epoch_steps(self) -> float | None:
        """Batches in a pass over the training images; None before the first evaluation."""
        return self.evaluations[-1]["step"] / self.evaluations[-1]["epoch"] if self.evaluations else None

    @property
    def window(self) -> int:
        """Over how many steps figures smooth the loss."""
        return max(3, len(self.steps) // 60)

    @property
    def planned_steps(self) -> int | None:
        """The step at which the run will be complete, or was; None where that is not known yet."""
        if not self.epoch_steps:
            return None
        batch, begun = self.config.data.batch, self.newest.begun if self.newest else self.phases[0].first - 1
        images = round(self.epoch_steps * batch)
        return begun + sum(phase_steps(phase, images, batch) for phase in self.config.phases)

    @property
    def model_evaluations(self) -> list[dict[str, Any]]:
        """The evaluations since the model's last part has begun to learn."""
        return [line for line in self.evaluations if line["complete"]]

    @property
    def last_evaluation(self) -> dict[str, Any] | None:
        """The latest evaluation: the result's, on the test split, where the run is finished."""
        if self.result:
            return {"bits_per_dim": self.result["test_bits_per_dim"], "complete": True}
        return self.evaluations[-1] if self.evaluations else None

    @property
    def last_seen(self) -> datetime:
        """When the last metrics were taken, in UTC."""
        return datetime.fromtimestamp(max(float(stream.time[-1]) for stream in self.streams), UTC)

    def phase_at(self, step: int) -> PhaseHistory | None:
        """The phase that a step belongs to."""
        return next((phase for phase in self.phases if phase.first <= step <= phase.last), None)

    def at(self, column: Floats, step: "Integers | Sequence[int]") -> Floats:
        """The value of `seconds` or `sent` at the end of steps; 0 before the first."""
        known = np.concatenate([[self.steps[0] - 1], self.steps])
        values: Floats = np.interp(step, known, np.concatenate([[0.0], column]))
        return values


def read_run(directory: str | Path) -> RunHistory:
    """Reads a run directory; a ValueError if it is no run, has no metrics yet, or a file of it is damaged."""
    run = RunDirectory(Path(directory))
    if not run.settings.is_file():
        raise ValueError(f"{run.path} is no run directory: it has no config.yaml.")
    config = run_files.read_settings(run.settings)
    streams = run_files.read_metrics(run)
    if not streams:
        raise ValueError(
            f"{run.path} has no metrics yet: no step has been written down. Ask again when it has trained."
        )
    evaluations = run_files.read_evaluations(run.stream(EVALUATION))
    checkpoints, newest = run_files.read_checkpoints(run)
    steps = np.unique(np.concatenate([stream.step for stream in streams]))
    result = run_files.read_result(run.result)
    if result and (
        len(result["phases"]) < len(config.phases) or (evaluations and evaluations[-1]["step"] < int(steps[-1]))
    ):
        result = None  # the run went on after this result was written
    phases = _phases(run, config, streams, result["phases"] if result else newest.phases if newest else [])
    seconds, paused = training_seconds(steps, streams, [(phase.first, phase.last) for phase in phases])
    earlier_configs = [(step, run_files.read_settings(path)) for step, path in run.earlier_settings()]
    saves = run_files.read_lines(run.stream(CHECKPOINTS), ("step", "stall_s", "write_s", "bytes"))
    sent = None
    if newest and config.flow in FAMILIES:  # the shapes inside a flow of a script's own only that script knows
        sent = bytes_handed_forward(steps, streams, [*earlier_configs, (int(steps[-1]), config)], newest.image)
    return RunHistory(
        directory=run.path,
        name=run.path.resolve().name,
        config=config,
        config_yaml=run_files.read_bytes(run.settings).decode(),
        earlier_configs=earlier_configs,
        phases=phases,
        streams=streams,
        evaluations=evaluations,
        saves={line["step"]: line for line in saves},
        checkpoints=checkpoints,
        newest=newest,
        result=result,
        samples=[(step, run_files.read_bytes(path)) for step, path in run.drawn_samples()],
        steps=steps,
        seconds=seconds,
        sent=sent,
        paused=paused,
    )


def _phases(
    run: RunDirectory, config: Config, streams: list[PartMetrics], ended: list[dict[str, Any]]
) -> list[PhaseHistory]:
    phases = []
    for number in np.unique(np.concatenate([stream.phase for stream in streams])).tolist():
        if not 1 <= number <= len(config.phases):
            raise ValueError(
                f"{run.path} is damaged: its metrics tell of phase {number}, which config.yaml does not have."
            )
        steps = np.concatenate([stream.step[stream.phase == number] for stream in streams])
        after = ended[number - 1] if number <= len(ended) else None
        phases.append(PhaseHistory(number, config.phases[number - 1], int(steps.min()), int(steps.max()), after))
    return phases
