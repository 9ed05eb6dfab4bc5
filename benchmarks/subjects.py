"""What the arms are trained on: sizes that two cores carry, so that a sweep ends the same day.

Digits: 19 epochs of a Glow of 2 × 4 × 32, short of where the test bits/dim of these 1,500 images rise again, which is
looked at in every run (`best` beside `final`). CIFAR-10 (JPEG) is CIFAR-10 re-encoded as JPEG: smoother, so its
bits/dim are lower and no bits/dim of CIFAR-10.
"""

from dataclasses import dataclass
from pathlib import Path

from recipe import Subject
from sweep import Grid


@dataclass(frozen=True)
class Large:
    """A data set that does not ship with a package, and the model for it.

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


def digits(parts: int, quick: bool = False) -> tuple[Subject, Grid]:
    """scikit-learn's digits, cut between the levels or, into 3 or 4 parts, across them; and what is searched."""
    steps = 12 if quick else 600
    flow_steps, hidden = (2, 8) if quick else (4, 32)
    words = (*_glow(2, flow_steps, hidden), *_cut(parts, flow_steps, flow_steps))
    subject = Subject(words, 1500, batch=48, steps=steps, turn_steps=max(1, steps // 24), points=2 if quick else 12)
    grid = Grid((1.6e-2,), (None,), (), (100,), 0) if quick else Grid((1.6e-2, 3.2e-2, 6.4e-2))
    return subject, grid


def large(
    name: str, parts: int, root: Path, images: int | None = None, hidden: int | None = None
) -> tuple[Subject, Subject, Grid]:
    """A larger data set, from a directory: for full runs, for those of a sweep, and what is searched."""
    data = LARGE[name]
    glow = _glow(data.levels, data.steps, hidden or data.hidden)
    place = ("--data.name", data.source, "--data.root", str(root.resolve()), "--checkpoint.every", "200")
    words = (*glow, *_cut(parts, data.steps, data.half), *place)
    long, short = (images or data.images[0]) // 48, data.images[1] // 48
    subject = Subject(words, data.train, batch=48, steps=long, turn_steps=max(1, long // 24), points=6)
    swept = Subject(words, data.train, batch=48, steps=short, turn_steps=max(1, short // 24), points=1)
    return subject, swept, Grid(data.lrs, then=(), seeds=(100,))


def _glow(levels: int, steps: int, hidden: int) -> tuple[str, ...]:
    sizes = {"levels": levels, "steps": steps, "hidden": hidden}
    return tuple(word for name, value in sizes.items() for word in (f"--glow.{name}", str(value)))


def _cut(parts: int, steps: int, half: int) -> tuple[str, ...]:
    """Two parts: behind `half` flow steps; three: in the middle of the first two levels (the paper's); four: both."""
    middle, last = steps // 2, 3 * steps // 2
    at = {2: [half], 3: [middle, last], 4: [middle, half, last]}[parts]
    return ("--cut.scheme", "explicit", "--cut.parts", str(parts), "--cut.at", str(at))
