"""One run, one set of processes: a run directory that others are training in is left alone.

Two runs that write the same metrics and checkpoints would spoil both. A file that says "in use" outlives a process that
was killed; a lock of the operating system on the directory does not.
"""

import fcntl
import os
import time
from pathlib import Path

_PATIENCE_S = 5.0  # a process that was just killed may still be going
_held: dict[Path, int] = {}


def claim(directory: Path) -> None:
    """Claims a run directory for this process, until it ends or releases it; to claim it again changes nothing.

    Raises:
        ValueError: another process has claimed it.
    """
    release(directory)
    descriptor = os.open(directory, os.O_RDONLY)
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                raise ValueError(
                    f"{directory} is being trained in by another process; wait for it, stop it, or give another "
                    "--run_dir."
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            break
    _held[directory.resolve()] = descriptor


def release(directory: Path) -> None:
    """Gives a claim of this process back, if there is one."""
    if (descriptor := _held.pop(directory.resolve(), None)) is not None:
        os.close(descriptor)
