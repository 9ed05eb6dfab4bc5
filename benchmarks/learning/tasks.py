"""The tasks of the learning benchmarks, small enough for a sweep on two cores within a day.

Digits: 19 epochs of a Glow of 2 × 4 × 32; later the test bits/dim of these 1,500 images would rise again, which every
result shows (`best` beside `final`). CIFAR-10 (JPEG) is CIFAR-10 re-encoded as JPEG: smoother, so its
bits/dim are lower and no bits/dim of CIFAR-10.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.recipe import Task
from benchmarks.learning.sweep import Grid


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
    source: str
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


def digits(parts: int, quick: bool = False) -> tuple[Task, Grid]:
    """scikit-learn's digits, cut between the levels or, into 3 or 4 parts, across them; and the grid of its sweep."""
    steps = 12 if quick else 600
    flow_steps, hidden = (2, 8) if quick else (4, 32)
    words = (*_glow(2, flow_steps, hidden), *_cut(parts, flow_steps, flow_steps))
    task = Task(words, 1500, batch=48, steps=steps, turn_steps=max(1, steps // 24), points=2 if quick else 12)
    grid = Grid((1.6e-2,), (None,), (), (100,), 0) if quick else Grid((1.6e-2, 3.2e-2, 6.4e-2))
    return task, grid


def large(
    name: str, parts: int, root: Path, images: int | None = None, hidden: int | None = None
) -> tuple[Task, Task, Grid]:
    """A larger data set: the task of full runs, that of a sweep, and the grid of the sweep."""
    data = LARGE[name]
    glow = _glow(data.levels, data.steps, hidden or data.hidden)
    source = ("--data.name", data.source, "--data.root", str(root.resolve()), "--checkpoint.every", "200")
    words = (*glow, *_cut(parts, data.steps, data.half), *source)
    long, short = (images or data.images[0]) // 48, data.images[1] // 48
    task = Task(words, data.train, batch=48, steps=long, turn_steps=max(1, long // 24), points=6)
    swept = Task(words, data.train, batch=48, steps=short, turn_steps=max(1, short // 24), points=1)
    return task, swept, Grid(data.lrs, then=(), seeds=(100,))


def portable(words: tuple[str, ...], root: Path | None) -> str:
    """Settings as on a command line, with DIR for the directory of the images on this machine."""
    return " ".join("DIR" if root and word == str(root.resolve()) else word for word in words)


def _glow(levels: int, steps: int, hidden: int) -> tuple[str, ...]:
    sizes = {"levels": levels, "steps": steps, "hidden": hidden}
    return tuple(word for name, value in sizes.items() for word in (f"--glow.{name}", str(value)))


def _cut(parts: int, steps: int, half: int) -> tuple[str, ...]:
    """Two parts: after `half` flow steps; three: in the middle of the first two levels (the paper's); four: both."""
    middle, last = steps // 2, 3 * steps // 2
    at = {2: [half], 3: [middle, last], 4: [middle, half, last]}[parts]
    return ("--cut.scheme", "explicit", "--cut.parts", str(parts), "--cut.at", str(at))
