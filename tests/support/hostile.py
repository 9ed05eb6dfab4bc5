"""Commands on files that lie, each in a process with little memory: what it says, how it ends, what it leaves."""

import contextlib
import hashlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import struct
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.processes import in_processes

MEMORY = 1 << 30  # bytes of address space that a command may take beyond what it has after its imports
SECONDS = 30  # that it may take


class TookTooLong(BaseException):
    """A command has not come to its end; nothing that it catches."""


def run_confined(runs: list[tuple[list[str], Path]]) -> list[tuple[int, str]]:
    """Runs `python -m pipeflow.<words>` in a folder, one after another in one process; all must be different folders.

    Returns:
        For each its exit code, -1 where an exception came out of it or it took too long, and its standard error.
    """
    meet = runs[0][1].parent / "meet"
    found: list[tuple[int, str]]
    (found,) = in_processes(1, _confined, runs, directory=meet, timeout_s=60 + SECONDS * len(runs))
    return found


def _confined(init_method: str, runs: list[tuple[list[str], Path]]) -> list[tuple[int, str]]:
    warnings.resetwarnings()
    warnings.simplefilter("ignore", ResourceWarning)
    found = []
    for words, here in runs:
        os.chdir(here)
        main = importlib.import_module(f"pipeflow.{words[0]}").main
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
            try:
                with little_memory(SECONDS):
                    code = main(words[1:])
            except BaseException:
                code = -1
                traceback.print_exc()
        found.append((code, errors.getvalue()))
    return found


@contextlib.contextmanager
def little_memory(seconds: int) -> Iterator[None]:
    """Within it this process may take 1 GiB more than it has; after so many seconds it raises TookTooLong."""

    def stop(number: int, frame: object) -> None:
        raise TookTooLong

    signal.signal(signal.SIGALRM, stop)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


Case = tuple[Callable[[Path], object], list[str]]
"""Makes files in a folder, whose run is in "run"; the words of a command that is carried out in that folder."""


def check_refused(cases: dict[str, Case], fixture: Path | None, scratch: Path) -> None:
    """Each command ends with exit code 1 or 2 and one sentence, and writes nothing outside its run directory.

    `fixture` is a run, a copy of which is in the folder of each case as "run"; a folder "outside" is beside it.
    """
    runs: list[tuple[list[str], Path]] = []
    for number, (make, words) in enumerate(cases.values()):
        here = scratch / str(number)
        (here / "outside").mkdir(parents=True)
        (here / "outside" / "kept").write_text('{"step": 1}\n')
        if fixture:
            shutil.copytree(fixture, here / "run")
        make(here)
        runs.append((words, here))
    before = [(tree(here / "outside"), {path.name for path in here.iterdir()} | {"run", "new"}) for _, here in runs]
    problems = {}
    for name, (_, here), (kept, names), (code, text) in zip(cases, runs, before, run_confined(runs), strict=True):
        print(f"{name}: {code}: {text[:300]}")
        sentence = len(text.splitlines()) == 1 and text.startswith("pipeflow: ") and len(text) < 1000
        elsewhere = {path.name for path in here.iterdir()} - names
        if code not in (1, 2) or not sentence or elsewhere or tree(here / "outside") != kept:
            problems[name] = (code, text[:100], text[-700:], elsewhere)
    assert not problems, "\n\n".join(f"{name}: {problem}" for name, problem in problems.items())


def tree(root: Path) -> dict[str, Any]:
    """Everything below a folder: path → content, or where a link leads."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def edit_manifest(checkpoint: Path, **entries: Any) -> None:
    """Replaces entries of a manifest."""
    file = checkpoint / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def seal(checkpoint: Path) -> None:
    """Makes the manifest's checksums those of the files, as whoever forges a checkpoint would."""
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.glob("*.safetensors")}
    edit_manifest(checkpoint, files=files)


def head_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def safetensors_of(header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file with this header, whatever it says; `length` is what the file says the header has."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data
