"""The models of several runs on the split on which they are evaluated, against epochs and against time."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .drawing import Drawing, colour, new_figure
from .quantities import time_unit
from .run_history import RunHistory
from .training_clock import PAUSE


def comparison_figure(histories: Sequence[RunHistory]) -> Drawing | None:
    """A curve per run; None before any evaluation."""
    if not any(history.model_evaluations for history in histories):
        return None
    unit, size = time_unit(max(history.seconds[-1] for history in histories))
    with new_figure(4.2) as (figure, png):
        left, right = figure.subplots(1, 2, sharey=True)
        for number, history in enumerate(histories):
            lines = history.model_evaluations
            bits = [line["bits_per_dim"] for line in lines]
            steps = np.array([line["step"] for line in lines], dtype=np.int64)
            look: dict[str, Any] = {"color": colour(number), "marker": "osD^vP"[number % 6], "markersize": 4}
            left.plot([line["epoch"] for line in lines], bits, label=history.name, **look)
            right.plot(history.at(history.seconds, steps) / size, bits, **look)
        splits = " or ".join(sorted({history.split for history in histories}))
        left.set(xlabel="passes over the data (epochs)", ylabel=f"{splits} bits/dim of the model")
        right.set(xlabel=f"time spent training ({unit})")
        figure.legend(loc="outside lower center", ncols=min(4, len(histories)))
        caption = f"Time without pauses (steps longer than {PAUSE} times their phase's median are not counted)."
        data = [history.config.data for history in histories]
        if len({(config.name, config.image_size, config.bits) for config in data}) > 1:
            caption += " These runs learn from different images, whose bits/dim must not be compared."
        return Drawing("compared.png", "The models compared", caption, png())
