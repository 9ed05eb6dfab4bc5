"""Training runs of an experiment: settings → run directory → curve of test bits/dim.

A sweep is hundreds of short runs, most of which differ in one number. A run directory is named by a hash of the
settings: one that is complete is read, one that was interrupted goes on (`--resume auto`), one that diverged is
remembered as such. So a sweep that is started again does only what is left to do.

A study whose next runs depend on what its first ones found keeps a file instead, with a line per finished run
(`train_in_order`), and no run directories.
"""

import argparse
import atexit
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.comparison import Line, read_lines
from benchmarks.learning.curves import Result, read_result, summary
from benchmarks.lib.results import hardware
from benchmarks.lib.torchrun import command, start
from pipeflow.cli import STOPPED
from pipeflow.train import main as train

MOST_ERRORS = 3
DIVERGED = ("not finite", "non-finite")


@dataclass(frozen=True)
class TrainingRun:
    """The settings of one run.

    Attributes:
        name: for people; need not be unique.
        words: settings on the command line of `pipeflow.train`, except those below.
        phases: as `--phases` takes them.
        seed: of everything random.
        processes: 1, or as many as torchrun starts.
        threads: intra-op threads per process.
        root: directory of the images on this machine; no part of the directory's name.
    """

    name: str
    words: tuple[str, ...]
    phases: tuple[dict[str, Any], ...]
    seed: int = 0
    processes: int = 1
    threads: int = 1
    root: Path | None = None

    @property
    def directory(self) -> str:
        """Name of the run directory: the run's name and a hash of its settings."""
        settings = [self.words, self.phases, self.seed, self.processes, self.threads]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return f"{re.sub(r'[^a-z0-9.]+', '_', self.name)}-{digest}"

    def options(self, directory: Path) -> list[str]:
        """The options of `python -m pipeflow.train`."""
        process = ["--seed", str(self.seed), "--parallel.threads", str(self.threads)]
        phases = ["--phases", json.dumps(self.phases), "--resume", "auto"]
        root = ["--data.root", str(self.root)] if self.root else []
        return ["--run_dir", str(directory), "--device", "cpu", *self.words, *root, *process, *phases]


def add_options(parser: argparse.ArgumentParser) -> None:
    """--runs and --jobs."""
    parser.add_argument(
        "--runs", type=Path, help="where runs are kept; runs/benchmarks by default, nowhere with --quick"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, where only bits/dim are measured")


def runs_directory(args: argparse.Namespace) -> Path:
    """The directory of the runs; with --quick one that is removed at the end."""
    if args.runs or not args.quick:
        return args.runs or Path("runs/benchmarks")
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    return Path(directory.name)


def train_all(runs: Sequence[TrainingRun], directory: Path, jobs: int = 1) -> list[Result]:
    """Trains runs, `jobs` of them at a time, and reads their results, in the same order.

    Args:
        runs: what to train; runs of equal settings are trained once.
        directory: of the run directories; those that are complete in it are only read.
        jobs: how many side by side; more than 1 where seconds do not matter.

    Returns:
        For each run its "name", "seed", "phases", "processes" and "threads", and what `read_result` finds.
    """
    todo = list({run.directory: run for run in runs if _unfinished(directory / run.directory)}.values())
    if todo:
        print(f"{len(todo)} of {len(runs)} runs to do, {jobs} at a time", flush=True)
    for done in [_pool(jobs).submit(_train, run, directory) for run in todo]:
        print(f"  {done.result()}", flush=True)
    known = ("name", "seed", "phases", "processes", "threads")
    return [
        {key: getattr(run, key) for key in known} | read_result(directory / run.directory, run.processes)
        for run in runs
    ]


@dataclass(frozen=True)
class Job:
    """A run of a study, and what its line says of it besides the result.

    Attributes:
        run: what is trained.
        labels: what tells it from the others.
        processes: between which its bytes are computed.
    """

    run: TrainingRun
    labels: dict[str, Any]
    processes: int


Wanted = Callable[[Mapping[str, Line]], Sequence[Job]]
"""Finished runs by key → the runs that are known to be wanted by now, the most informative first."""


def train_in_order(wanted: Wanted, file: Path, jobs: int, minutes: float = math.inf) -> list[Line]:
    """Trains the runs of a study, `jobs` at a time, each in one process, and appends a line per finished run.

    Args:
        wanted: asked again after every run for what is to be done; runs that are finished are skipped.
        file: of the lines; what is in it already is not done again.
        jobs: how many side by side.
        minutes: after which no run is begun.

    Returns:
        All finished runs.

    Raises:
        RuntimeError: a run ended otherwise than finished or diverged; the others go on until MOST_ERRORS have.
    """
    until = time.monotonic() + 60 * minutes
    done = {line["key"]: line for line in read_lines(file)}
    file.parent.mkdir(parents=True, exist_ok=True)
    begun: dict[Future[Line], str] = {}
    errors: dict[str, BaseException] = {}
    with open(file, "a") as lines:
        if lines.tell() and not file.read_bytes().endswith(b"\n"):
            lines.write("\n")
        while True:
            for job in wanted(done) if time.monotonic() < until and len(errors) < MOST_ERRORS else ():
                key = job.run.directory
                if len(begun) < jobs and key not in done and key not in errors and key not in begun.values():
                    begun[_pool(jobs).submit(_train_job, job)] = key
            if not begun:
                break
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                key = begun.pop(future)
                if error := future.exception():
                    errors[key] = error
                    print(f"      {key}: {error}", flush=True)
                    continue
                line = done[key] = future.result()
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                print(f"{len(done):4d}  {line['name']}, seed {line['seed']}: {_outcome(line)}", flush=True)
    for error in errors.values():
        raise error
    return list(done.values())


def _train_job(job: Job) -> Line:
    """In a process of the pool: trains in a directory that is removed; returns the line."""
    with tempfile.TemporaryDirectory() as parent:
        _train(job.run, Path(parent))
        found = summary(read_result(Path(parent) / job.run.directory, job.processes))
    gpu = f", {torch.cuda.get_device_name()}" if "cuda" in job.run.words else ""
    machine = {"hardware": hardware() + gpu, "torch": torch.__version__}
    return {"key": job.run.directory, "name": job.run.name, "seed": job.run.seed, **job.labels, **found, **machine}


def _outcome(line: Line) -> str:
    return line.get("failed") or f"{line['test']:.4f} bits/dim, {line['seconds']:.1f} s"


@cache
def _pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that import PyTorch once, for all the runs that they do."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def _unfinished(directory: Path) -> bool:
    return not ((directory / "result.json").exists() or (directory / "diverged").exists())


def _train(run: TrainingRun, parent: Path) -> str:
    """In a process of the pool: trains; returns a line about it."""
    directory = parent / run.directory
    parent.mkdir(parents=True, exist_ok=True)
    options = run.options(directory)
    with tempfile.TemporaryFile("w+") as output:
        if run.processes == 1:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = train(options)
        else:
            words = command("pipeflow.train", options, run.processes)
            code = start(words, run.threads, stdout=output, stderr=output).wait()
        output.seek(0)
        lines = output.read().splitlines()
    if code in (STOPPED, 130):
        os._exit(code)  # asked to stop: this worker goes, and the sweep with it
    last = next((line for line in reversed(lines) if line.startswith("pipeflow: ")), lines[-1] if lines else "")
    if code == 0:
        return lines[-1].split(" (truncated")[0]
    if any(word in last for word in DIVERGED):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "diverged").write_text(last.removeprefix("pipeflow: "))
        return f"{run.directory} diverged: {last}"
    raise RuntimeError(f"{run.directory} ended with {code}: {last}")
