"""Starts `pipeflow.train` and other modules in one process or, by torchrun, in several, and waits for them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def environment(threads: int = 1, **more: Any) -> dict[str, str]:
    """This process's environment with the repository root on PYTHONPATH and so many threads per process."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    changes = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": threads, **more}
    return {**os.environ, **{name: str(value) for name, value in changes.items()}}


def torchrun(*options: str) -> list[str]:
    """A command that is followed by torchrun's further options, `-m` and a module."""
    return [sys.executable, "-m", "torch.distributed.run", *options]


def command(module: str, words: Sequence[str], processes: int = 1) -> list[str]:
    """The command that runs a module with options, in so many processes on this machine."""
    launcher = torchrun("--standalone", f"--nproc_per_node={processes}") if processes > 1 else [sys.executable]
    return [*launcher, "-m", module, "--", *words]


def start(command: Sequence[str], threads: int = 1, **options: Any) -> subprocess.Popen[Any]:
    """Starts a command; `options` are those of `Popen`."""
    return subprocess.Popen(command, env=environment(threads), **options)


def wait(*processes: subprocess.Popen[str]) -> tuple[str, str]:
    """Waits for processes that were started with `PIPES`; ends this one if any failed.

    Returns:
        What they wrote to standard output and to standard error.
    """
    texts = [process.communicate() for process in processes]
    out, errors = ("".join(text) for text in zip(*texts, strict=True))
    if any(process.returncode for process in processes):
        sys.exit(out + errors)
    return out, errors


def run(module: str, words: Sequence[str], processes: int = 1) -> str:
    """Runs a module in so many processes, a thread each, until it ends; returns its standard output."""
    return wait(start(command(module, words, processes), **PIPES))[0]


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
