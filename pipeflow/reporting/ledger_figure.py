"""Where the bits of the images go: what each kind of step in each part adds to their code length."""

from typing import Any

import numpy as np

from .drawing import MODEL, Drawing, colour, new_figure
from .run_files import Floats
from .run_history import RunHistory


def ledger_figure(history: RunHistory) -> Drawing | None:
    """The ledger at every evaluation; None before the model's last part has been evaluated."""
    lines = history.model_evaluations
    if not lines:
        return None
    # Cutting anew changes how many parts there are: what the last cut knows is drawn.
    lines = [line for line in lines if len(line["parts"]) == len(lines[-1]["parts"])]
    epochs = _at_least_two([line["epoch"] for line in lines])
    with new_figure(4.6) as (figure, png):
        axes = figure.subplots()
        above, below = np.zeros(len(epochs)), np.zeros(len(epochs))
        for label, values, look in _entries(lines):
            height = _at_least_two(values)
            if not np.any(height):
                continue
            top, bottom = above + np.maximum(height, 0), below + np.minimum(height, 0)
            axes.fill_between(epochs, above, top, label=label, **look)
            axes.fill_between(epochs, below, bottom, **look)
            above, below = top, bottom
        bits = _at_least_two([line["parts"][-1]["bits_per_dim"] for line in lines])
        axes.plot(epochs, bits, color="white", linewidth=4)
        axes.plot(epochs, bits, color=MODEL, linewidth=2, label="their sum: the model")
        axes.axhline(0, color=MODEL, linewidth=0.8)
        axes.set(xlabel="passes over the data (epochs)", ylabel=f"bits/dim on the {history.split} split")
        axes.margins(x=0)
        figure.legend(loc="outside lower center", ncols=3)
        caption = (
            f"What each kind of step adds to the code length of the {history.split} images. Log-determinants mostly "
            "take bits away, and hang below zero; all entries add up to the model's bits/dim."
        )
        return Drawing("ledger.png", "Where the bits go", caption, png())


def _entries(lines: list[dict[str, Any]]) -> list[tuple[str, list[float], dict[str, Any]]]:
    """(label, value at each evaluation, how it is drawn) of each entry of the ledger."""
    parts = range(len(lines[-1]["parts"]))
    entries: list[tuple[str, list[float], dict[str, Any]]] = [
        ("dequantisation", [line["dequantisation"] for line in lines], {"facecolor": "#D9D9D9"})
    ]
    for part in parts:
        values = [line["parts"][part]["log_det"] for line in lines]
        entries.append((f"log-dets, part {part + 1}", values, {"facecolor": colour(part)}))
    for part in parts:
        values = [line["parts"][part]["split_prior"] for line in lines]
        look = {"facecolor": "white", "edgecolor": colour(part), "hatch": "////", "linewidth": 0.6}
        entries.append((f"split priors, part {part + 1}", values, look))
    entries.append(("last prior", [line["parts"][-1]["prior"] for line in lines], {"facecolor": "#8C8C8C"}))
    return entries


def _at_least_two(values: list[float]) -> Floats:
    """The values; a single one twice, so that it can be seen as a line or an area."""
    return np.array(values if len(values) > 1 else values * 2, dtype=np.float64)
