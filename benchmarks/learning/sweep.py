"""Every recipe with its own best settings: the same search for all of them, so that none is handicapped.

First a grid of learning rates with and without clipping; if the best rate is the highest or lowest tried, the grid
grows that way; then the other settings of the best, one at a time. Settings are chosen by bits/dim on training images
that are held out, on seeds of their own for which no figure is reported.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.learning.curves import Result
from benchmarks.learning.recipe import Recipe, Task


@dataclass(frozen=True)
class Grid:
    """What is tried.

    Attributes:
        lrs: rising learning rates, each with every clipping.
        clips: largest norms of a gradient; None does not clip.
        then: further changes to the best, tried alone.
        seeds: a setting is as good as the mean over these.
        grow: how often the grid may grow.
    """

    lrs: tuple[float, ...]
    clips: tuple[float | None, ...] = (None, 1.0)
    then: tuple[dict[str, Any], ...] = ({"cool": 0.1}, {"cool": 0.5}, {"clip": 10.0})
    seeds: tuple[int, ...] = (100, 101)
    grow: int = 2


@dataclass(frozen=True)
class Tried:
    """A setting and its held-out bits/dim, the mean over seeds; infinite where a seed diverged."""

    recipe: Recipe
    bits: float


def best_of(recipes: Sequence[Recipe], task: Task, grid: Grid, directory: Path, jobs: int) -> dict[str, list[Tried]]:
    """Searches the settings of some recipes.

    Returns:
        Name → everything that was tried, the best first.
    """
    found: dict[str, list[Tried]] = {recipe.name: [] for recipe in recipes}

    def attempt(settings: Callable[[Recipe], Sequence[Recipe]]) -> None:
        todo = [setting for recipe in recipes for setting in settings(recipe)]
        for number, results in task.train(dict(enumerate(todo)), grid.seeds, directory, jobs).items():
            bits = mean(result.get("validation", math.inf) for result in results)
            found[todo[number].name].append(Tried(todo[number], bits))
        for tried in found.values():
            tried.sort(key=lambda one: one.bits)

    def clipped(recipe: Recipe, lrs: Sequence[float]) -> list[Recipe]:
        return [recipe.but(lr=lr, clip=clip) for lr in lrs for clip in grid.clips]

    attempt(lambda recipe: clipped(recipe, grid.lrs))
    for _ in range(grid.grow):
        attempt(lambda recipe: clipped(recipe, next_rates(found[recipe.name])))
    attempt(lambda recipe: [found[recipe.name][0].recipe.but(**change) for change in grid.then])
    return found


def final(result: Result) -> float:
    """Test bits/dim at the end of a run; infinite where it diverged."""
    return float(result.get("final", math.inf))


def next_rates(tried: list[Tried]) -> list[float]:
    """The learning rate beyond the edge of the grid, if the best lies on that edge."""
    lrs = sorted({one.recipe.lr for one in tried})
    best = tried[0].recipe.lr
    if len(lrs) > 1 and best == lrs[-1]:
        return [lrs[-1] * 2]
    return [lrs[0] / 2] if len(lrs) > 1 and best == lrs[0] else []
