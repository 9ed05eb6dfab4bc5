"""What every benchmark hands back: a table as it goes, a JSON file and a picture that say how they came about.

A figure without its hardware, date, versions and settings cannot be compared with anything. A full run writes to
benchmarks/results/ unless told otherwise; a `--quick` one is too short to be kept, and writes only where it is told to.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PLACES = ("--json", "--png", "--runs")
PACKAGES = ("torch", "numpy", "normflows")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: --quick, --json, --png."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: to see that it works; nothing is kept")
    parser.add_argument("--json", type=Path, help="where to; benchmarks/results/ by default, unless --quick")
    parser.add_argument("--png", type=Path, help="where to; beside the JSON by default")
    return parser


def about(settings: dict[str, Any]) -> dict[str, Any]:
    """How a result came about: when, on what, with which versions and settings, and by which command."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_without_places(sys.argv[1:])]),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **{n: v for n in PACKAGES if (v := _version(n))}},
        "config": settings,
    }


def hardware() -> str:
    """ "x86_64, 2 cores, <name of the processor>, 24 GiB"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join([platform.machine(), f"{os.cpu_count()} cores", *names[:1], f"{memory:.0f} GiB"])


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under their headings: the first column to the left, the others to the right, "–" for what is not there."""
    cells = [list(map(str, headings)), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(line)
        ).rstrip()
        for line in ([*zip(row, widths, strict=True)] for row in cells)
    )


def keep(name: str, result: dict[str, Any], args: argparse.Namespace, figure: Any = None) -> None:
    """Writes JSON and PNG, and says where.

    Args:
        name: of the benchmark, and of its files.
        result: what it found, `about` included.
        args: what `make_parser` parsed.
        figure: a matplotlib figure, if there is one.
    """
    where = args.json or (None if args.quick else RESULTS / f"{name}.json")
    if where:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {where}")
    picture = args.png or (where and where.with_suffix(".png"))
    if figure is not None and picture:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=120, bbox_inches="tight")
        print(f"wrote {picture}")


def axes(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, drawn without a display; `options` are those of matplotlib's `subplots`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, layout="constrained", **options)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _without_places(words: list[str]) -> list[str]:
    """A command line without where its files go; where data come from is DIR."""
    kept: list[str] = []
    before = ""
    for word in words:
        name, equals, _ = word.partition("=")
        if before == "--root":
            kept.append("DIR")
        elif name == "--root" and equals:
            kept.append("--root=DIR")
        elif before not in _PLACES and name not in _PLACES:
            kept.append(word)
        before = "" if equals else word
    return kept
