"""The page of a report: histories of runs and their figures → one HTML file that needs nothing else.

Notebooks and TensorBoard need something that runs. This page has no script and no reference to anything outside it:
it can be mailed, printed, put beside a paper, and read years later. Its text and its looks are in page.html.jinja.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .drawing import REPORT_MAKER, Drawing
from .quantities import amount, duration
from .results_table import checkpoint_rows, model_bits, results
from .run_history import RunHistory
from .run_summary import lead, slowest_parts, unfinished

_TEMPLATES = Environment(
    loader=PackageLoader("pipeflow.reporting", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(histories: Sequence[RunHistory], drawings: Sequence[Sequence[Drawing]], compared: Drawing | None) -> str:
    """The whole HTML file.

    Args:
        histories: the runs, in the order in which they are shown.
        drawings: the figures of each.
        compared: the figure of all of them, if there are several.
    """
    return _TEMPLATES.get_template("page.html.jinja").render(
        maker=REPORT_MAKER,
        title=f"{len(histories)} runs compared" if len(histories) > 1 else histories[0].name,
        names=[history.name for history in histories],
        results=results(histories),
        compared=_embedded(compared) if compared else None,
        runs=[_run(history, figures) for history, figures in zip(histories, drawings, strict=True)],
    )


def _run(history: RunHistory, figures: Sequence[Drawing]) -> dict[str, Any]:
    """What the template says of one run."""
    stalls = [line["stall_s"] for line in history.saves]
    return {
        "name": history.name,
        "lead": lead(history),
        "bits": model_bits(history),
        "unfinished": unfinished(history),
        "figures": {figure.file.removesuffix(".png").rsplit("-", 1)[-1]: _embedded(figure) for figure in figures},
        "slowest_parts": slowest_parts(history),
        "samples": [_sample(history, step, png) for step, png in history.samples],
        "saves": len(stalls),
        "stalled": (duration(sum(stalls)), duration(max(stalls))) if stalls else None,
        "written": amount(history.saves[-1]["bytes"]) if stalls else None,
        "checkpoints": checkpoint_rows(history),
        "config_yaml": history.config_yaml,
    }


def _sample(history: RunHistory, step: int, png: bytes) -> dict[str, Any]:
    phase = next((phase for phase in history.phases if phase.first <= step <= phase.last), None)
    when = f"step {step}" + (f", phase {phase.number}: {phase.name}" if phase else "")
    return {"step": step, "when": when, "source": _data_url(png)}


def _embedded(figure: Drawing) -> dict[str, str]:
    return {"title": figure.title, "caption": figure.caption, "source": _data_url(figure.png)}


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
