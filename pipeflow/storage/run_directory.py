"""The paths and stream names of a run directory, each written down once."""

import os
import re
from pathlib import Path

MANIFEST = "manifest.json"
END_TO_END, EVALUATION, CHECKPOINTS = "end_to_end", "evaluation", "checkpoints"  # streams besides those of parts
MODEL = "model"  # TensorBoard's name for evaluations and samples


def part_stream(part: int) -> str:
    """The metrics stream of a part, counted from 0; in files parts are numbered from 1."""
    return f"part-{part + 1}"


class RunDirectory:
    """Where the files of a run are; nothing is made here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "config.yaml"
        self.result = path / "result.json"
        self.lock = path / "lock"  # names the process that trains here; locked, and there, as long as it does
        self.launch = path / "launch.json"  # names what has started the processes of the run last
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics"
        self.samples = path / "samples"
        self.rejoin = path / "rejoin"  # what processes keep so that a lost one can be replaced alone

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def stream(self, name: str) -> Path:
        """Metrics as JSON lines: of `part_stream(part)`, `END_TO_END`, `EVALUATION` or `CHECKPOINTS`."""
        return self.metrics / f"{name}.jsonl"

    def tensorboard(self, name: str) -> Path:
        """TensorBoard events of a stream, or of `MODEL`."""
        return self.path / "tensorboard" / name

    def sample(self, step: int) -> Path:
        """The sheet of samples that was drawn at a step."""
        return self.samples / f"step-{step}.png"

    def settings_until(self, step: int) -> Path:
        """Other settings that held until a step."""
        return self.path / f"config-until-step-{step}.yaml"

    def holds_run(self) -> bool:
        """Whether a run has begun here."""
        return self.settings.exists() or self.checkpoints.exists()

    def check_plain(self, to_write: bool = True) -> None:
        """A ValueError where it holds pipes or devices, which might never end, or links out of it, and is written."""
        inside = os.path.realpath(self.path) + os.sep
        for folder, folders, files in os.walk(self.path):
            for path in (os.path.join(folder, name) for name in folders + files):
                if to_write and os.path.islink(path) and not os.path.realpath(path).startswith(inside):
                    raise ValueError(f"{path} leads out of the run directory; put what it stands for in its place.")
                if not os.path.isfile(path) and not os.path.isdir(path) and os.path.lexists(path):
                    raise ValueError(f"{path} is neither a file nor a directory; remove it from the run directory.")

    def recorded_parts(self) -> list[int]:
        """The parts that have a stream, counted from 0, in order."""
        return [part - 1 for part, _ in _numbered(self.metrics, r"part-(\d+)\.jsonl")]

    def earlier_settings(self) -> list[tuple[int, Path]]:
        """(step, file) of all settings that held until a step, in order."""
        return _numbered(self.path, r"config-until-step-(\d+)\.yaml")

    def drawn_samples(self) -> list[tuple[int, Path]]:
        """(step, file) of all sheets of samples, in order."""
        return _numbered(self.samples, r"step-(\d+)\.png")

    def saved_steps(self) -> list[int]:
        """The steps that have a checkpoint, damaged or not, in order."""
        found = _numbered(self.checkpoints, r"step-(\d+)")
        return [step for step, path in found if (path / MANIFEST).is_file()]


def run_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint lies in, resolved."""
    return checkpoint.resolve().parent.parent


def _numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    """(number, path) of what a folder holds by such a name, in order; nothing where there is no folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(name[1]), path) for path in paths if (name := re.fullmatch(pattern, path.name)))
