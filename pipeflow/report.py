"""python -m pipeflow.report: runs → one HTML file to look at, and its figures as PNG beside it."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .cli import Options
from .reporting import REPORT_MAKER, Drawing, Story, page, read
from .reporting import run_figures as figures


def report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the report of runs: an HTML file, and its figures in a folder of the same name beside it.

    Args:
        runs: run directories, finished or not.
        out: the HTML file; `report.html` in the first run by default. A report that is there is made anew.

    Returns:
        The HTML file.

    Raises:
        ValueError: a directory that is no run, a damaged file, or a place that cannot be written; nothing was written.
    """
    file = Path(runs[0]) / "report.html" if out is None else Path(out)
    twice = [
        run for number, run in enumerate(runs) if Path(run).resolve() in [Path(r).resolve() for r in runs[:number]]
    ]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; give every run once.")
    stories = [read(run) for run in runs]
    names = [story.name for story in stories]
    stories = [replace(story, name=str(story.directory)) if names.count(story.name) > 1 else story for story in stories]
    _check_place(file)
    drawings = [_draw(story, f"{number}-" if len(runs) > 1 else "") for number, story in enumerate(stories, 1)]
    compared = figures.compared(stories) if len(runs) > 1 else None
    every = [drawing for drawn in drawings for drawing in drawn] + [drawing for drawing in [compared] if drawing]
    folder = file.with_suffix("")
    for drawing in every:
        if (folder / drawing.file).exists() and not _ours(folder / drawing.file):
            raise ValueError(f"{folder / drawing.file} is no figure of a report, and is not written over.")
    _write(file, page(stories, drawings, compared), every)
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 where something is for the user to put right."""
    parser = Options("pipeflow.report", "Curves and tables of runs to look at.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run directory, finished or not")
    parser.add_argument("--out", metavar="FILE.html", help="report.html in the first run by default")
    try:
        given = parser.parse(sys.argv[1:] if arguments is None else arguments)
        file = report(given.runs, given.out)
    except ValueError as error:
        print(f"pipeflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    print(f"{file}: the report; its figures are in {file.with_suffix('')}.")
    return 0


def _draw(story: Story, prefix: str) -> list[Drawing]:
    makers = (figures.loss_by_epoch, figures.loss_by_time, figures.loss_by_bytes, figures.ledger, figures.shares)
    drawn = [maker(story) for maker in makers]
    return [replace(drawing, file=prefix + drawing.file) for drawing in drawn if drawing]


def _check_place(file: Path) -> None:
    """A ValueError where the page cannot go, or something else is there."""
    if file.suffix != ".html":
        raise ValueError(f"--out is {file}; it must end in .html.")
    if not file.parent.is_dir():
        raise ValueError(f"--out is {file}, but there is no folder {file.parent}; make it first.")
    if file.exists() and not _ours(file):
        raise ValueError(f"{file} is no report, and is not written over; give another --out.")
    if (folder := file.with_suffix("")).exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, but the figures need a folder of that name; give another --out.")


def _ours(file: Path) -> bool:
    """Whether a report wrote this file: pages and figures say so near their beginning."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return REPORT_MAKER.encode() in stream.read(400)


def _write(file: Path, text: str, drawings: Sequence[Drawing]) -> None:
    folder, partial = file.with_suffix(""), file.with_name(file.name + ".partial")
    try:
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.png"):
            if _ours(path):
                path.unlink()
        for drawing in drawings:
            (folder / drawing.file).write_bytes(drawing.png)
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written ({error.strerror}).") from error


if __name__ == "__main__":
    sys.exit(main())
