"""A report in files: the HTML page, and its figures as PNG in a folder of the same name beside it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..storage import RunDirectory, write_whole
from .drawing import REPORT_MAKER, Drawing, is_made_by
from .html import page
from .loss_figures import loss_by_bytes, loss_by_epoch, loss_by_time
from .run_figures import comparison_figure, ledger_figure, time_shares_figure
from .run_history import read_run

_FIGURES = (loss_by_epoch, loss_by_time, loss_by_bytes, ledger_figure, time_shares_figure)


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the report of runs.

    Args:
        runs: run directories, finished or not.
        out: the HTML file; `report.html` in the first run by default. A report that is there is made anew.

    Returns:
        The HTML file.

    Raises:
        ValueError: a directory that is no run, a damaged file, or a file that cannot be written; nothing was written.
    """
    file = Path(runs[0]) / "report.html" if out is None else Path(out)
    for number, run in enumerate(runs):
        if Path(run).resolve() in [Path(earlier).resolve() for earlier in runs[:number]]:
            raise ValueError(f"{run} is given twice; give every run once.")
        RunDirectory(Path(run)).check_plain(to_write=out is None)
    histories = [read_run(run) for run in runs]
    names = [history.name for history in histories]
    histories = [
        replace(history, name=str(history.directory)) if names.count(history.name) > 1 else history
        for history in histories
    ]
    _check_out(file)
    drawings = []
    for number, history in enumerate(histories, 1):
        drawn, prefix = [draw(history) for draw in _FIGURES], f"{number}-" * (len(runs) > 1)
        drawings.append([drawing._replace(file=prefix + drawing.file) for drawing in drawn if drawing])
    compared = comparison_figure(histories) if len(runs) > 1 else None
    every = [*chain.from_iterable(drawings), *([compared] if compared else [])]
    folder = file.with_suffix("")
    for drawing in every:
        if (folder / drawing.file).exists() and not is_made_by(REPORT_MAKER, folder / drawing.file):
            raise ValueError(f"{folder / drawing.file} is no figure of a report, and is not written over.")
    _write(file, page(histories, drawings, compared), every)
    return file


def _check_out(file: Path) -> None:
    """A ValueError where the page cannot be written, or something else is there."""
    if file.suffix != ".html":
        raise ValueError(f"--out is {file}; it must end in .html.")
    if not file.parent.is_dir():
        raise ValueError(f"--out is {file}, but there is no folder {file.parent}; make it first.")
    if file.exists() and not is_made_by(REPORT_MAKER, file):
        raise ValueError(f"{file} is no report, and is not written over; give another --out.")
    if (folder := file.with_suffix("")).exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, but the figures need a folder of that name; give another --out.")


def _write(file: Path, text: str, drawings: Sequence[Drawing]) -> None:
    folder = file.with_suffix("")
    try:
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.png"):
            if is_made_by(REPORT_MAKER, path):
                path.unlink()
        for drawing in drawings:
            (folder / drawing.file).write_bytes(drawing.png)
        write_whole(file, text)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written ({error.strerror}).") from error
