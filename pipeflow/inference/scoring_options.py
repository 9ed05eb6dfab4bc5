"""The options of `python -m pipeflow.evaluate`, checked before anything is opened."""

import argparse
from pathlib import Path
from typing import TypeVar, get_args

from ..data import SourceName

Parser = TypeVar("Parser", bound=argparse.ArgumentParser)


def add_scoring_options(parser: Parser) -> Parser:
    """Adds all options; returns the parser."""
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run directory, or RUN/checkpoints/step-<n>")
    add("--seed", type=int, help="of the dequantisation noise (default: the run's own)")
    add("--split", choices=("test", "validation"), default="test", help="of the run's own data (default: test)")
    add("--samples", type=int, default=1, metavar="K", help="draws of noise an image (default: 1)")
    add("--data", choices=get_args(SourceName), help="score the test split of this data set instead")
    add("--root", metavar="DIR", help="where the files of the scored data set are")
    add("--own-root", metavar="DIR", help="with --data and --histogram: where the run's own files are")
    add("--batch", type=int, metavar="B", help="images at a time (default: as in training)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--histogram", type=Path, metavar="FILE.png", help="bits/dim by image; with --data of both sets")
    add("--json", type=Path, metavar="FILE", help="everything that is printed, and more")
    return parser


def check_scoring_options(options: argparse.Namespace) -> argparse.Namespace:
    """A ValueError where numbers are out of range, or options do not go together."""
    for name in ("samples", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1.")
    if options.split == "validation" and options.data:
        raise ValueError("--split validation is of the run's own data; --data scores the test split of others.")
    if options.own_root and not (options.data and options.histogram):
        raise ValueError("--own-root only says where the second data set of a --histogram with --data is; use --root.")
    return options


def check_files(table: Path | None, histogram: Path | None) -> None:
    """A ValueError where a file that is asked for could not be written in the end."""
    for name, file in (("json", table), ("histogram", histogram)):
        if file and file.exists():
            raise ValueError(f"--{name} {file} is there already, and is not written over; give another name.")
        if file and not file.parent.is_dir():
            raise ValueError(f"--{name} {file} cannot be written: {file.parent} is no directory.")
    if histogram and histogram.suffix != ".png":
        raise ValueError(f"--histogram {histogram} must end in .png.")
    if histogram and histogram == table:
        raise ValueError(f"--histogram and --json are both {table}; give two names.")
