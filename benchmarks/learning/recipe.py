"""How the images of a run are divided: so many by parts, the rest end to end, the last third of all at a lower rate.

Recipes that are compared draw equally many images in equally many steps, and all of them lower their learning rate
after the same image; else a recipe would win only because it cools down.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.learning.curves import Result
from benchmarks.learning.runs import TrainingRun, train_all

Key = TypeVar("Key")


@dataclass(frozen=True)
class Task:
    """What is trained: images and a model, the same for every recipe.

    Attributes:
        words: settings of data and model.
        train_images: how many there are.
        batch: images per step, over all processes.
        steps: length of a run.
        turn_steps: length of a turn of the schedule alternate.
        validation: of the training images, held out to choose settings by.
        points: evaluations in a run.
        root: directory of the images on this machine.
    """

    words: tuple[str, ...]
    train_images: int
    batch: int
    steps: int
    turn_steps: int
    validation: int
    points: int = 12
    root: Path | None = None

    def run(self, recipe: "Recipe", seed: int = 0, processes: int = 1, threads: int = 1) -> TrainingRun:
        """The run of a recipe on this task."""
        every = self.steps * self.batch / (self.train_images - self.validation) / self.points
        sizes = {"data.batch": self.batch, "data.validation": self.validation, "eval_every": f"{every:.6g}"}
        options = (word for name, value in sizes.items() for word in (f"--{name}", str(value)))
        words, phases = (*self.words, *options, *recipe.words), recipe.phases(self.steps, self.turn_steps)
        return TrainingRun(recipe.name, words, phases, seed, processes, threads, self.root)

    def train(
        self, recipes: Mapping[Key, "Recipe"], seeds: Sequence[int], directory: Path, jobs: int
    ) -> dict[Key, list[Result]]:
        """Trains all recipes with all seeds, in one process each; returns the results of each recipe, seed by seed."""
        runs = [self.run(recipe, seed) for recipe in recipes.values() for seed in seeds]
        results = train_all(runs, directory, jobs)
        return {key: results[at * len(seeds) :][: len(seeds)] for at, key in enumerate(recipes)}


@dataclass(frozen=True)
class Recipe:
    """A way to train.

    Attributes:
        schedule: of the phase by parts; meaningless if the tail is 1.
        tail: share of the images, the last ones, from which the model learns end to end.
        lr: learning rate.
        clip: largest norm of a gradient, or "adaptive"; None does not clip.
        cool: factor of the learning rate for the last third of the images.
        warmup_steps: updates over which the learning rate rises.
        words: further settings, as on the command line.
    """

    schedule: str
    tail: float
    lr: float = 2e-3
    clip: float | str | None = None
    cool: float = 0.25
    warmup_steps: int = 50
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """ "end to end", "alternate, tail 0.33"."""
        return "end to end" if self.tail == 1 else f"{self.schedule}, tail {self.tail:.2g}"

    def but(self, **changes: Any) -> "Recipe":
        """The recipe with changes."""
        return dataclasses.replace(self, **changes)

    def phases(self, steps: int, turn_steps: int) -> tuple[dict[str, Any], ...]:
        """As `--phases` takes them: cut where the tail begins, and where the last third begins."""
        switch, cooling = round(steps * (1 - self.tail)), round(steps * 2 / 3)
        phases: list[dict[str, Any]] = []
        for begin, end in pairwise(sorted({0, switch, cooling, steps})):
            schedule = "end_to_end" if end > switch else self.schedule
            phase: dict[str, Any] = {"schedule": schedule, "steps": end - begin}
            phase["lr"] = self.lr * (self.cool if begin >= cooling else 1.0)
            if self.clip is not None:
                phase["clip"] = self.clip
            if schedule == "alternate":
                phase["turn_steps"] = turn_steps
            phases.append(phase)
        if self.warmup_steps:
            phases[0]["warmup_steps"] = self.warmup_steps
        return tuple(phases)
