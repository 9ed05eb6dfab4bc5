"""What `python -m pipeflow.evaluate` is asked for, checked before anything is opened."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..data import SourceName


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run directory, or RUN/checkpoints/step-<n>")
    add("--seed", type=int, help="of the dequantisation noise (default: the run's own)")
    add("--samples", type=int, default=1, metavar="K", help="draws of noise an image (default: 1)")
    add("--data", choices=get_args(SourceName), help="score the test split of this data set instead")
    add("--root", metavar="DIR", help="where the files of the scored data set are")
    add("--own-root", metavar="DIR", help="with --data and --histogram: where the run's own files are")
    add("--batch", type=int, metavar="B", help="images at a time (default: as in training)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--histogram", type=Path, metavar="FILE.png", help="bits/dim by image; with --data of both sets")
    add("--json", type=Path, metavar="FILE", help="everything that is printed, and more")


@dataclass(frozen=True)
class ScoringOptions:
    """What to score, and where to write it; the attributes are the options of the command."""

    run: Path
    seed: int | None
    samples: int
    data: SourceName | None
    root: str | None
    own_root: str | None
    batch: int | None
    device: str
    histogram: Path | None
    json: Path | None

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} is {value}; it must be at least 1.")
        if self.own_root and not (self.data and self.histogram):
            raise ValueError(
                "--own-root only says where the second data set of a --histogram with --data is; use --root."
            )

    def check_files(self) -> None:
        """A ValueError where a file could not be written in the end."""
        for name, file in (("json", self.json), ("histogram", self.histogram)):
            if file and file.exists():
                raise ValueError(f"--{name} {file} is there already, and is not written over; give another name.")
            if file and not file.parent.is_dir():
                raise ValueError(f"--{name} {file} cannot be written: {file.parent} is no directory.")
        if self.histogram and self.histogram.suffix != ".png":
            raise ValueError(f"--histogram {self.histogram} must end in .png.")
        if self.histogram and self.histogram == self.json:
            raise ValueError(f"--histogram and --json are both {self.json}; give two names.")
