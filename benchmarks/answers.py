"""Arms beside each other, seed by seed: which is better, by how much, and whether that is more than chance."""

import math
from statistics import mean, stdev
from typing import Any

from outcome import Outcome
from recipe import Recipe
from results_file import table
from sweep import final

TAIL = 1 / 3

Arms = dict[str, Recipe]
Found = dict[str, list[Outcome]]


def bits(outcomes: list[Outcome]) -> float:
    """Mean over seeds of the final test bits/dim; infinite where one diverged."""
    return mean(map(final, outcomes))


def handed_over(outcome: Outcome) -> float:
    """Test bits/dim of the model at the end of training by parts."""
    images = outcome["curve"][-1]["images"] * (1 - TAIL)
    reached = [point for point in outcome["curve"] if point["images"] <= images + 1e-6 and point["bits_per_dim"]]
    return float(reached[-1]["bits_per_dim"]) if reached else math.nan


def gaps(outcomes: list[Outcome], base: list[Outcome]) -> list[float]:
    """Final bits/dim minus those without the change, seed by seed, where both are there."""
    pairs = zip(map(final, outcomes), map(final, base), strict=True)
    return [mine - theirs for mine, theirs in pairs if math.isfinite(mine) and math.isfinite(theirs)]


def helps(outcomes: list[Outcome], base: Found) -> bool:
    """Whether a change is better than none by more than its standard error; a seed that diverges rules it out."""
    differences = gaps(outcomes, base["no change"])
    if len(differences) < max(2, len(outcomes)):
        return False
    return mean(differences) < -stdev(differences) / math.sqrt(len(differences))


def summary(found: Found, arms: Arms, base: str | None) -> str:
    """A row an arm: bits/dim over seeds, and how far from no change."""
    rows = []
    for name, outcomes in found.items():
        ended = [outcome for outcome in outcomes if "final" in outcome]
        row: list[Any] = [name, *_mean_sd([final(outcome) for outcome in ended])]
        over = [handed_over(outcome) for outcome in ended]
        row += [f"{mean(over):.4f}" if over else None]
        row += list(_mean_sd(gaps(outcomes, found[base]))) if base in found and name != base else [None, None]
        worst = [value for outcome in ended for value in outcome["worst"].values() if value is not None]
        row += [f"{max(worst):.2f}" if worst else None, sum(outcome["skipped"] for outcome in ended)]
        rows.append([*row, f"{len(outcomes) - len(ended)} of {len(outcomes)}"])
    heads = ["arm", "test bits/dim", "sd", "at the switch", "to no change", "sd", "worst loss", "skipped", "diverged"]
    return table(heads, rows)


def _mean_sd(values: list[float]) -> tuple[str | None, str | None]:
    if not values:
        return None, None
    return f"{mean(values):.4f}", f"{stdev(values):.4f}" if len(values) > 1 else None
