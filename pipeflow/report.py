"""python -m pipeflow.report: runs → one HTML file to look at, and its figures as PNG beside it."""

import sys
from collections.abc import Sequence

from .cli import Options, print_error, words
from .reporting import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 where something is for the user to put right."""
    parser = Options("pipeflow.report", "Curves and tables of runs to look at.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run directory, finished or not")
    parser.add_argument("--out", metavar="FILE.html", help="report.html in the first run by default")
    try:
        options = parser.parse_args(words(arguments))
        file = write_report(options.runs, options.out)
    except ValueError as error:
        print_error(error)
        return 2
    print(f"{file}: the report; its figures are in {file.with_suffix('')}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
