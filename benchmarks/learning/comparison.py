"""Recipes compared seed by seed: which is better, by how much, and whether that is more than chance."""

import math
from statistics import mean, stdev
from typing import Any

from benchmarks.learning.curves import Result
from benchmarks.learning.recipe import Recipe
from benchmarks.learning.sweep import final
from benchmarks.lib.results import table

TAIL = 1 / 3

Recipes = dict[str, Recipe]
Found = dict[str, list[Result]]


def bits(results: list[Result]) -> float:
    """Mean over seeds of the final test bits/dim; infinite where one diverged."""
    return mean(map(final, results))


def handed_over(result: Result) -> float:
    """Test bits/dim of the model at the end of training by parts."""
    images = result["curve"][-1]["images"] * (1 - TAIL)
    reached = [point for point in result["curve"] if point["images"] <= images + 1e-6 and point["bits_per_dim"]]
    return float(reached[-1]["bits_per_dim"]) if reached else math.nan


def gaps(results: list[Result], base: list[Result]) -> list[float]:
    """Final bits/dim minus those without the change, seed by seed, for seeds where both are finite."""
    pairs = zip(map(final, results), map(final, base), strict=True)
    return [mine - theirs for mine, theirs in pairs if math.isfinite(mine) and math.isfinite(theirs)]


def helps(results: list[Result], base: Found) -> bool:
    """Whether a change is better than none by more than its standard error; a seed that diverges rules it out."""
    differences = gaps(results, base["no change"])
    if len(differences) < max(2, len(results)):
        return False
    return mean(differences) < -stdev(differences) / math.sqrt(len(differences))


def summary(found: Found, base: str | None) -> str:
    """A row per recipe: bits/dim over seeds, and how far from no change."""
    rows = []
    for name, results in found.items():
        ended = [result for result in results if "final" in result]
        row: list[Any] = [name, *_mean_sd([final(result) for result in ended])]
        over = [handed_over(result) for result in ended]
        row += [f"{mean(over):.4f}" if over else None]
        row += list(_mean_sd(gaps(results, found[base]))) if base in found and name != base else [None, None]
        worst = [value for result in ended for value in result["worst"].values() if value is not None]
        row += [f"{max(worst):.2f}" if worst else None, sum(result["skipped"] for result in ended)]
        rows.append([*row, f"{len(results) - len(ended)} of {len(results)}"])
    heads = [
        "recipe",
        "test bits/dim",
        "sd",
        "at the switch",
        "to no change",
        "sd",
        "worst loss",
        "skipped",
        "diverged",
    ]
    return table(heads, rows)


def _mean_sd(values: list[float]) -> tuple[str | None, str | None]:
    if not values:
        return None, None
    return f"{mean(values):.4f}", f"{stdev(values):.4f}" if len(values) > 1 else None
