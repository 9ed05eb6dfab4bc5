"""Metrics as JSON lines: appended while a run works, and cut back where it resumes."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO


def rewind(file: Path, step: int) -> None:
    """Takes back what a stream says of steps behind `step`, and a line that was cut off."""
    kept = []
    for line in file.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    shorter = file.with_name(file.name + ".partial")
    shorter.write_text("".join(kept))
    shorter.replace(file)


def largest(file: Path, phase: int, names: Sequence[str]) -> dict[str, float]:
    """The largest finite value of each of these figures in a phase, of those that the stream has."""
    found: dict[str, float] = {}
    with file.open() as lines:
        for line in map(json.loads, lines):
            for name in names:
                if line["phase"] == phase and math.isfinite(value := line.get(name, math.nan)):
                    found[name] = max(value, found.get(name, value))
    return found


class Stream:
    """The metrics of one part, appended to a JSONL file, a line a tick.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", buffering=1 << 16)

    def write(self, **fields: object) -> None:
        """Appends one line."""
        self._file.write(json.dumps(fields) + "\n")

    def flush(self) -> None:
        """Makes what was written visible to readers."""
        self._file.flush()

    def close(self) -> None:
        """Ends the stream."""
        self._file.close()
