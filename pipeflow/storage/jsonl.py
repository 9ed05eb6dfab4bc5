"""Metrics as JSON lines: appended while a run works, and cut back where it resumes."""

import errno
import json
import os
from pathlib import Path
from typing import IO

from .atomic import write_whole


def rewind(file: Path, step: int) -> None:
    """Takes back what a stream says of steps after `step`, and a line that was cut off."""
    kept = []
    for line in file.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    write_whole(file, "".join(kept))


class Stream:
    """Metrics that are appended to a file of JSON lines.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[str] = path.open("a", buffering=1 << 16)

    def write(self, **fields: object) -> None:
        """Appends one line."""
        self._file.write(json.dumps(fields) + "\n")

    def flush(self) -> None:
        """Makes what was written visible to readers; an OSError if the file is not in its folder any more."""
        self._file.flush()
        if not self.path.is_file():  # a removed file takes what is written to it, and nobody will find it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))

    def close(self) -> None:
        """Ends the stream."""
        self._file.close()
