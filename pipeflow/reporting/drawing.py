"""How all figures look, and what a report keeps of each; their captions are in page.html.jinja."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

# In every file of a report or a plan, so that no other is written over.
REPORT_MAKER, PLAN_MAKER = "pipeflow.report", "pipeflow.plan"
DPI = 150
# Okabe and Ito's palette, which colour-blind people can tell apart; black is the model's.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MODEL, GREY = "#222222", "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


class Drawing(NamedTuple):
    """A figure of a report: the name of its PNG, the picture, and whether something lies above its frame."""

    file: str
    png: bytes
    cut_off: bool = False


@contextmanager
def new_figure(
    height: float, width: float = 7.2, maker: str = REPORT_MAKER
) -> Iterator[tuple[Figure, Callable[[], bytes]]]:
    """A figure, in inches, and a function that returns it as PNG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")

        def png() -> bytes:
            stream = io.BytesIO()
            figure.savefig(stream, format="png", metadata={"Software": maker})
            return stream.getvalue()

        yield figure, png


def is_made_by(maker: str, file: Path) -> bool:
    """Whether a report, or a plan, wrote this file: pages, figures and plans say so near their beginning."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return maker.encode() in stream.read(400)


def colour(number: int) -> Any:
    """The colour of a part or a run, counted from 0."""
    if number < len(PALETTE):
        return PALETTE[number]
    return matplotlib.colormaps["cividis"](number * 0.381966 % 1)  # the golden section: neighbours differ
