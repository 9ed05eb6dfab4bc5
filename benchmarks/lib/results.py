"""What a benchmark leaves: a table on the terminal, and a JSON file and a picture that say how they were made.

A figure without its hardware, date, versions and settings cannot be compared with anything. A full run writes to
benchmarks/results/ unless told otherwise; a `--quick` run is too short to be kept, and writes only where it is told to.
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

RESULTS = Path(__file__).parents[1] / "results"
OUTPUT_OPTIONS = ("--json", "--png", "--runs", "--out")
PACKAGES = ("torch", "numpy", "normflows")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: --quick, --json, --png."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short, to see that it works; nothing is kept")
    parser.add_argument("--json", type=Path, help="file to write; benchmarks/results/ by default, unless --quick")
    parser.add_argument("--png", type=Path, help="picture to write; beside the JSON by default")
    return parser


def about(settings: dict[str, Any]) -> dict[str, Any]:
    """The beginning of every results file: date, command, hardware, versions and settings ("config")."""
    spec = sys.modules["__main__"].__spec__
    program = f"-m {spec.name}" if spec else f"benchmarks/{Path(sys.argv[0]).name}"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", program, *_without_paths(sys.argv[1:])]),
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
    """Rows under their headings: the first column aligned left, the others right, "–" for None."""
    cells = [list(map(str, headings)), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells
    )


def write_json(file: Path, result: dict[str, Any]) -> None:
    """Writes a results file, and its directory if there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


def keep(name: str, result: dict[str, Any], args: argparse.Namespace, figure: Any = None) -> None:
    """Writes JSON and PNG where the options say, and prints where that is.

    Args:
        name: of the benchmark, and of its files.
        result: what it found, `about` included.
        args: what `make_parser` parsed.
        figure: a matplotlib figure, if there is one.
    """
    file = args.json or (None if args.quick else RESULTS / f"{name}.json")
    if file:
        write_json(file, result)
        print(f"wrote {file}")
    picture = args.png or (file and file.with_suffix(".png"))
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


def _without_paths(words: list[str]) -> list[str]:
    """A command line without its output files; the directory of the data is written as DIR."""
    kept: list[str] = []
    before = ""
    for word in words:
        name, equals, _ = word.partition("=")
        if before == "--root":
            kept.append("DIR")
        elif name == "--root" and equals:
            kept.append("--root=DIR")
        elif before not in OUTPUT_OPTIONS and name not in OUTPUT_OPTIONS:
            kept.append(word)
        before = "" if equals else word
    return kept
