"""The page of a report: histories of runs and their figures → one HTML file that needs nothing else.

Notebooks and TensorBoard need something that runs. This page has no script and no reference to anything outside it:
it can be mailed, printed, put beside a paper, and read years later. Its text and its looks are in page.html.jinja.
"""

from base64 import b64encode
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from .drawing import REPORT_MAKER, Drawing
from .quantities import amount, duration
from .results_table import NOT_KNOWN, mebibytes, model_bits, number, results_column
from .run_history import RunHistory
from .run_summary import lead, slowest_parts, unfinished

_TEMPLATES = Environment(
    loader=PackageLoader("pipeflow.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_TEMPLATES.filters |= {"amount": amount, "duration": duration, "mebibytes": mebibytes, "number": number}
_TEMPLATES.filters |= {"bits": model_bits, "lead": lead, "slowest_parts": slowest_parts, "unfinished": unfinished}
_TEMPLATES.filters["data_url"] = lambda png: f"data:image/png;base64,{b64encode(png).decode()}"


def page(histories: Sequence[RunHistory], drawings: Sequence[Sequence[Drawing]], compared: Drawing | None) -> str:
    """The whole HTML file.

    Args:
        histories: the runs, in the order in which they are shown.
        drawings: the figures of each.
        compared: the figure of all of them, if there are several.
    """
    columns = [results_column(history) for history in histories]
    figures = [{figure.file.rsplit("-", 1)[-1]: figure for figure in of_run} for of_run in drawings]
    return _TEMPLATES.get_template("page.html.jinja").render(
        maker=REPORT_MAKER,
        title=f"{len(histories)} runs compared" if len(histories) > 1 else histories[0].name,
        runs=histories,
        rows=list(dict.fromkeys(name for column in columns for name in column)),
        columns=columns,
        compared=compared,
        figures=figures,
        not_known=NOT_KNOWN,
    )
