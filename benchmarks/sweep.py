"""Every arm with its own best settings: the same search for all of them, so that none is handicapped.

First a grid of learning rates with and without clipping; where the best rate is the highest or lowest tried, the grid
grows that way; then the other settings of the best, one at a time. The package has no validation split: settings are
chosen by the test split, for every arm alike, on seeds of their own that no figure is reported of.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from arm import carry_out
from outcome import Outcome
from recipe import Recipe, Subject


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
    """A setting and its test bits/dim, the mean over seeds; infinite where a seed diverged."""

    recipe: Recipe
    bits: float

    @property
    def told(self) -> float | None:
        """The bits/dim as JSON can say them."""
        return self.bits if math.isfinite(self.bits) else None


def best_of(recipes: Sequence[Recipe], subject: Subject, grid: Grid, runs: Path, jobs: int) -> dict[str, list[Tried]]:
    """Searches the settings of some recipes.

    Returns:
        name → everything that was tried, the best first.
    """
    found: dict[str, list[Tried]] = {recipe.name: [] for recipe in recipes}

    def attempt(settings: Callable[[Recipe], Sequence[Recipe]]) -> None:
        todo = [setting for recipe in recipes for setting in settings(recipe)]
        arms = [subject.arm(setting, seed) for setting in todo for seed in grid.seeds]
        outcomes = carry_out(arms, runs, jobs)
        for place, setting in enumerate(todo):
            ends = outcomes[place * len(grid.seeds) : (place + 1) * len(grid.seeds)]
            found[setting.name].append(Tried(setting, mean(map(final, ends))))
        for tried in found.values():
            tried.sort(key=lambda one: one.bits)

    attempt(lambda recipe: [recipe.but(lr=lr, clip=clip) for lr in grid.lrs for clip in grid.clips])
    for _ in range(grid.grow):
        attempt(
            lambda recipe: [recipe.but(lr=lr, clip=clip) for lr in _next(found[recipe.name]) for clip in grid.clips]
        )
    attempt(lambda recipe: [found[recipe.name][0].recipe.but(**change) for change in grid.then])
    return found


def final(outcome: Outcome) -> float:
    """Test bits/dim at the end of a run; infinite where it diverged."""
    return float(outcome.get("final", math.inf))


def _next(tried: list[Tried]) -> list[float]:
    """The learning rate beyond the edge on which the best lies, if it does."""
    lrs = sorted({one.recipe.lr for one in tried})
    best = tried[0].recipe.lr
    if len(lrs) > 1 and best == lrs[-1]:
        return [lrs[-1] * 2]
    return [lrs[0] / 2] if len(lrs) > 1 and best == lrs[0] else []
