"""Heats and finals: each contestant's best setting is found first, then all run in turns, round after round."""

import statistics
from typing import Any

from race import Race
from rivals import settings


def heat(race: Race, name: str, batch: int, seconds: float, quick: bool = False) -> list[dict[str, Any]]:
    """A contestant with each of its settings, the fastest first: what `Race.measure` found."""
    tried = settings(name, batch, race.processes, quick)
    if len(tried) == 1:
        return [{"setting": tried[0]}]
    found = [race.measure(name, setting, seconds, batch) for setting in tried]
    return sorted(found, key=lambda one: -one["images_per_s"])


def finals(
    race: Race, lineup: dict[str, tuple[str, dict[str, Any]]], batch: int, seconds: float, rounds: int
) -> dict[str, dict[str, Any]]:
    """Everyone in turns, `rounds` times.

    Args:
        race: the processes.
        lineup: what to call it → name and setting of a contestant.
        batch: images an optimizer step.
        seconds: of each measurement, about.
        rounds: how often.

    Returns:
        What to call it → what its median round found, with "images_per_s_rounds": of all of them.
    """
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in lineup}
    for _ in range(rounds):
        for label, (name, setting) in lineup.items():
            found[label].append(race.measure(name, setting, seconds, batch))
    return {
        label: {**_median(rows), "images_per_s_rounds": [row["images_per_s"] for row in rows]}
        for label, rows in found.items()
    }


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    middle = statistics.median_low(row["images_per_s"] for row in rows)
    return next(row for row in rows if row["images_per_s"] == middle)
