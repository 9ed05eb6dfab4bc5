"""The tasks of the learning benchmarks, small enough for a sweep on two cores within a day.

Digits: 22 epochs of a Glow of 2 × 4 × 32; later the test bits/dim of these 1,300 images would rise again, which every
result shows (`best` beside `final`). CIFAR-10 (JPEG) is CIFAR-10 re-encoded as JPEG: smoother, so its
bits/dim are lower and no bits/dim of CIFAR-10.
"""

import argparse
import atexit
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.learning.recipe import Task
from benchmarks.learning.sweep import Grid
from pipeflow.data import DataConfig, SourceName, images_of


@dataclass(frozen=True)
class Large:
    """A data set from a directory, and the model for it.

    Attributes:
        title: for people.
        source: `--data.name`.
        train: training images.
        levels, steps, hidden: of the Glow.
        half: flow steps in the first of two parts: a level has four times the pixels of the next.
        images: that a run draws, and that a run of a sweep draws.
        lrs: where a sweep begins.
    """

    title: str
    source: SourceName
    train: int
    levels: int
    steps: int
    hidden: int
    half: int
    images: tuple[int, int]
    lrs: tuple[float, ...]


LARGE = {
    "cifar10_jpeg": Large(
        "CIFAR-10 (JPEG), not CIFAR-10", "folder", 50_000, 3, 4, 32, 3, (96_000, 14_400), (2e-3, 4e-3)
    ),
    "fashion_mnist": Large("Fashion-MNIST", "fashion_mnist", 60_000, 2, 8, 64, 5, (96_000, 14_400), (1e-3, 2e-3)),
}

TRANSFORMERS = {"jet": ("couplings", 12, 1), "tarflow": ("blocks", 6, 2)}
"""Flow → what its steps are called, how many a study's model has, and the layers of each; they are `WIDTH` wide."""
WIDTH = 64


def digits(parts: int, quick: bool = False, flow: str = "glow") -> tuple[Task, Grid]:
    """scikit-learn's digits, cut between the levels or, into 3 or 4 parts, across them; and the grid of its sweep."""
    steps = 12 if quick else 600
    flow_steps, hidden = (2, 8) if quick else (4, 32)
    words = (*_glow(2, flow_steps, hidden), *_cut(parts, flow_steps, flow_steps))
    if flow != "glow":
        words = _transformer(flow, parts, patch=2)
    task = Task(words, 1500, 48, steps, max(1, steps // 24), validation=200, points=2 if quick else 12)
    grid = Grid((1.6e-2,), (None,), (), (100,), 0) if quick else Grid((1.6e-2, 3.2e-2, 6.4e-2))
    return task, grid


def large(
    name: str, parts: int, root: Path, images: int | None = None, hidden: int | None = None, flow: str = "glow"
) -> tuple[Task, Task, Grid]:
    """A larger data set: the task of full runs, that of a sweep, and the grid of the sweep."""
    data = LARGE[name]
    model = (*_glow(data.levels, data.steps, hidden or data.hidden), *_cut(parts, data.steps, data.half))
    if flow != "glow":
        model = _transformer(flow, parts, patch=4)
    words = (*model, "--data.name", data.source, "--checkpoint.every", "200")
    long, short = (images or data.images[0]) // 48, data.images[1] // 48
    task = Task(words, data.train, 48, long, max(1, long // 24), validation=2000, points=6, root=root.resolve())
    swept = replace(task, steps=short, turn_steps=max(1, short // 24), points=1)
    return task, swept, Grid(data.lrs, then=(), seeds=(100,))


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """What the runs of a study train on, where, how many at a time, and where their results go."""
    parser.add_argument("--data", choices=["digits", *LARGE], default="digits")
    parser.add_argument("--root", type=Path, help="where the images are, unless digits")
    parser.add_argument("--steps", type=int, help="of a run; 600 by default for digits, else 2,000")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no run is begun")
    parser.add_argument("--out", type=Path, help="file with a line per finished run; what is in it is not done again")


def study_file(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Path:
    """The file of finished runs, with --quick one that is removed at the end; images are decoded before runs begin."""
    if args.quick and not args.out:
        directory = tempfile.TemporaryDirectory()
        atexit.register(directory.cleanup)
        args.out = Path(directory.name) / "runs.jsonl"
    if not args.out or (args.data != "digits" and not args.root):
        parser.error("--out is missing, or --root: where the images are.")
    if args.data != "digits":
        try:
            images_of(DataConfig(name=LARGE[args.data].source, root=str(args.root)))
        except ValueError as error:
            parser.error(str(error))
    return Path(args.out)


def chosen_task(args: argparse.Namespace, parts: int, flow: str = "glow") -> Task:
    """The task that the options of a study choose, for a flow of this family."""
    device = ("--device", args.device, *(("--cuda_graphs", "true") if args.cuda_graphs else ()))
    if args.data == "digits":
        task, _ = digits(parts, args.quick, flow)
    else:
        task, *_ = large(args.data, parts, args.root, flow=flow)
    steps = args.steps or task.steps
    return replace(task, words=(*task.words, *device), steps=steps, turn_steps=max(1, steps // 24))


def task_labels(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What tells the runs of one study from those of another in the same file."""
    return {"data": args.data, "steps": task.steps, "batch": task.batch, "device": args.device}


def width(data: str, flow: str, quick: bool) -> int:
    """Width of the coupling networks, or transformers, of a task's model."""
    if flow != "glow":
        return WIDTH
    return (8 if quick else 32) if data == "digits" else LARGE[data].hidden


def layers(flow: str) -> int:
    """Layers of each transformer of a study's model; 1 for a Glow."""
    return 1 if flow == "glow" else TRANSFORMERS[flow][2]


def _glow(levels: int, steps: int, hidden: int) -> tuple[str, ...]:
    sizes = {"levels": levels, "steps": steps, "hidden": hidden}
    return tuple(word for name, value in sizes.items() for word in (f"--glow.{name}", str(value)))


def _transformer(flow: str, parts: int, patch: int) -> tuple[str, ...]:
    """A Jet or TarFlow in parts of equally many couplings or blocks."""
    units, count, depth = TRANSFORMERS[flow]
    sizes = {units: count, "depth": depth, "width": WIDTH, "heads": 4, "patch": patch}
    words = (word for name, value in sizes.items() for word in (f"--{flow}.{name}", str(value)))
    at = [round(part * count / parts) for part in range(1, parts)]
    return ("--flow", flow, *words, *_borders(at))


def _cut(parts: int, steps: int, half: int) -> tuple[str, ...]:
    """Two parts: after `half` flow steps; three: in the middle of the first two levels (the paper's); four: both.

    One part: no border.
    """
    middle, last = steps // 2, 3 * steps // 2
    at = {1: [], 2: [half], 3: [middle, last], 4: [middle, half, last]}[parts]
    return _borders(at)


def _borders(at: list[int]) -> tuple[str, ...]:
    priors = ("--cut.provisional_prior", "standard")
    return ("--cut.scheme", "explicit", "--cut.parts", str(len(at) + 1), "--cut.at", str(at), *priors)
