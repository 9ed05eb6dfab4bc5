"""How files are written: whole or not at all, or line by line, as JSON; and how one that may be anything is read."""

import errno
import json
import os
import stat
import sys
from pathlib import Path
from typing import IO


def write_whole(file: Path, content: bytes | str, durable: bool = False) -> None:
    """Writes a file beside its place, then renames it: whoever reads it finds the earlier content or this one.

    Text is written as UTF-8; the folder must exist. With `durable` the content is on the disk before the name is.
    """
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    partial.replace(file)


def read_plain(file: Path, most: int = 1 << 24) -> bytes:
    """The content of a file of at most so many bytes; an OSError for a pipe or a device, which might never end."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG((facts := os.fstat(descriptor)).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(file))
        if facts.st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(file))
        return stream.read()


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Stream:
    """Metrics that are appended to a file of JSON lines while a run works."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[str] = path.open("a", buffering=1 << 16)

    def write(self, **fields: object) -> None:
        self._file.write(json.dumps(fields) + "\n")

    def flush(self) -> None:
        """Makes what was written visible to readers; an OSError if the file is not in its folder any more."""
        self._file.flush()
        if not self.path.is_file():  # a removed file takes what is written to it, and nobody will find it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))

    def close(self) -> None:
        self._file.close()


def rewind(file: Path, step: int) -> None:
    """Takes back what a stream says of steps after `step`, where the run resumes, and lines that are damaged."""
    kept = []
    for line in read_plain(file, sys.maxsize).splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
    write_whole(file, b"".join(kept))
