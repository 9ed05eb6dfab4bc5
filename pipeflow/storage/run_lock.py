"""One run, one set of processes: a run directory that others are training in is left alone.

Two runs that write the same metrics and checkpoints would spoil both, and one that only reads would meet checkpoints
that the other is just removing. A file that says "in use" outlives a process that was killed; the operating system's
lock on that file does not.
"""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from .files import read_plain
from .run_directory import RunDirectory

_PATIENCE_S = 5.0  # a process that was just killed may still be going
_held: dict[Path, int] = {}


def claim(directory: Path, rank: int | None = None) -> bool:
    """Locks a run directory for the processes of this run; call it before anything in the directory is read.

    Rank 0 holds the lock until it ends or releases it; to claim it again changes nothing. The other ranks (by default
    the environment says which this is) only look whether another run holds it. A directory that does not exist yet is
    not locked.

    Returns:
        Whether this process has just taken the lock.

    Raises:
        ValueError: another run holds it, and the sentence says which process, on which host; or the directory holds
            what is neither a file nor a directory, or a link out of it.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    place, file = directory.resolve(), RunDirectory(directory).lock
    if place in _held or not directory.is_dir():
        return False
    RunDirectory(directory).check_plain()
    until = time.monotonic() + _PATIENCE_S
    while not (_is_free(file) if rank else _lock(file, place)):
        holder = _holder(file)
        if rank and holder.get("run") == _this_run():
            break
        if time.monotonic() > until:
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
            raise ValueError(
                f"{directory} is being trained in by {who}; wait for it, stop it, or give another --run_dir."
            )
        time.sleep(0.1)
    return place in _held


def release(directory: Path | None = None) -> None:
    """Gives this process's lock of a directory back, by default all that it has; does nothing where there is none."""
    for held in list(_held) if directory is None else [directory.resolve()]:
        if (descriptor := _held.pop(held, None)) is not None:
            with suppress(OSError):  # the directory may be gone
                RunDirectory(held).lock.unlink()
            os.close(descriptor)


def _lock(file: Path, place: Path) -> bool:
    """Takes the lock, or lets it be where nothing can be written; False while another process holds it."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except IsADirectoryError:
        raise ValueError(f"{file} is a directory, but a run keeps a file there; remove it.") from None
    except OSError:
        return True
    with suppress(FileNotFoundError):
        if _flock(descriptor, fcntl.LOCK_EX) and os.fstat(descriptor).st_ino == file.stat().st_ino:
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "run": _this_run()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
            _held[place] = descriptor
            return True
    os.close(descriptor)  # another process holds it, or has just removed the file
    return False


def _is_free(file: Path) -> bool:
    """Whether no process holds the lock."""
    try:
        with file.open("rb") as stream:
            return _flock(stream.fileno(), fcntl.LOCK_SH)
    except OSError:
        return True


def _flock(descriptor: int, kind: int) -> bool:
    """False where another process holds the lock; a file system without locks gives it to everybody."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _holder(file: Path) -> dict[str, str]:
    """What the process that holds the lock wrote into it: "pid", "host", "run"; empty while it has not."""
    try:
        found = json.loads(read_plain(file))
        return {name: str(found[name]) for name in ("pid", "host", "run")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _this_run() -> str:
    """What the processes of this run have in common, and those of another do not."""
    return " ".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")).strip()
