"""Fair comparisons: each approach's best setting is found first, then all are measured in turns, round after round."""

import statistics
from typing import Any

from benchmarks.speed.approaches import candidate_settings
from benchmarks.speed.runner import Runner

Lineup = dict[str, tuple[str, dict[str, Any]]]


def tune(runner: Runner, name: str, batch: int, seconds: float, quick: bool = False) -> list[dict[str, Any]]:
    """An approach with each of its settings, the fastest first: what `Runner.measure` found."""
    candidates = candidate_settings(name, batch, runner.processes, quick)
    if len(candidates) == 1:
        return [{"setting": candidates[0]}]
    found = [runner.measure(name, setting, seconds, batch) for setting in candidates]
    return sorted(found, key=lambda measured: -measured["images_per_s"])


def compare(runner: Runner, lineup: Lineup, batch: int, seconds: float, rounds: int) -> dict[str, dict[str, Any]]:
    """Measures everything in the lineup in turns, `rounds` times.

    Args:
        runner: the processes.
        lineup: label → name and setting of an approach.
        batch: images per optimizer step.
        seconds: of each measurement, about.
        rounds: how often.

    Returns:
        Label → what its median round found, with "images_per_s_rounds": of all of them.
    """
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in lineup}
    for _ in range(rounds):
        for label, (name, setting) in lineup.items():
            found[label].append(runner.measure(name, setting, seconds, batch))
    return {
        label: {**_median(rows), "images_per_s_rounds": [row["images_per_s"] for row in rows]}
        for label, rows in found.items()
    }


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    middle = statistics.median_low(row["images_per_s"] for row in rows)
    return next(row for row in rows if row["images_per_s"] == middle)
