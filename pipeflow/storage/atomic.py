"""Files that appear whole or not at all: written beside their place, then renamed into it."""

import os
from pathlib import Path


def write_whole(file: Path, content: bytes | str, durable: bool = False) -> None:
    """Writes a file, in place of an earlier one; its folder must exist.

    Args:
        file: whoever reads it finds the earlier content or this one.
        content: text is written as UTF-8.
        durable: the content is on the disk before the name is.

    Raises:
        OSError: the folder is gone, the disk is full, or refuses.
    """
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    partial.replace(file)


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
