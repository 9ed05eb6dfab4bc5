"""An arm of an experiment: settings of a run → the run → its curve of test bits/dim.

A sweep is hundreds of short runs, most of which differ in one number. An arm is named by a hash of its settings, and
leaves a run directory of that name: one that is complete is read, one that was interrupted goes on (`--resume auto`),
one that diverged is remembered as such. So a sweep that is started again does only what is left to do.
"""

import argparse
import atexit
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from outcome import Outcome, read_outcome

from pipeflow.cli import STOPPED
from pipeflow.train import main as train

DIVERGED = "not finite", "non-finite"


@dataclass(frozen=True)
class Arm:
    """One run.

    Attributes:
        name: for people; need not be unique.
        words: settings on the command line of `pipeflow.train`, but for those below.
        phases: as `--phases` takes them.
        seed: of everything random.
        processes: 1, or as many as torchrun starts.
        threads: intra-op threads a part.
    """

    name: str
    words: tuple[str, ...]
    phases: tuple[dict[str, Any], ...]
    seed: int = 0
    processes: int = 1
    threads: int = 1

    @property
    def directory(self) -> str:
        """Of the run: its name and what tells it from others."""
        told = [self.words, self.phases, self.seed, self.processes, self.threads]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        return f"{re.sub(r'[^a-z0-9.]+', '_', self.name)}-{digest}"

    def command(self, run: Path) -> list[str]:
        """The words behind `python -m pipeflow.train`."""
        said = ["--seed", str(self.seed), "--parallel.threads", str(self.threads), "--device", "cpu"]
        return ["--run_dir", str(run), *self.words, *said, "--phases", json.dumps(self.phases), "--resume", "auto"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """--runs and --jobs."""
    parser.add_argument("--runs", type=Path, help="where runs are kept; runs/arms by default, nowhere with --quick")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, where only bits/dim are measured")


def place(args: argparse.Namespace) -> Path:
    """The directory of the runs; one that is removed at the end, for a quick look."""
    if args.runs or not args.quick:
        return args.runs or Path("runs/arms")
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    return Path(directory.name)


def carry_out(arms: Sequence[Arm], runs: Path, jobs: int = 1) -> list[Outcome]:
    """Runs arms, `jobs` of them at a time, and reads what came of them; in the order given.

    Args:
        arms: what to run; arms of equal settings are run once.
        runs: directory of the run directories; those that are complete in it are only read.
        jobs: how many side by side; more than 1 where seconds do not matter.

    Returns:
        For each arm its "name", "seed", "phases", "processes" and "threads", and what `read_outcome` says.
    """
    todo = list({arm.directory: arm for arm in arms if _unfinished(runs / arm.directory)}.values())
    if todo:
        print(f"{len(todo)} of {len(arms)} runs to do, {jobs} at a time", flush=True)
    for done in [_pool(jobs).submit(_run, arm, runs) for arm in todo]:
        print(f"  {done.result()}", flush=True)
    return [_known(arm) | read_outcome(runs / arm.directory, arm.processes) for arm in arms]


@cache
def _pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that import PyTorch once, for all the runs that they do."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def _known(arm: Arm) -> Outcome:
    return {key: getattr(arm, key) for key in ("name", "seed", "phases", "processes", "threads")}


def _unfinished(run: Path) -> bool:
    return not ((run / "result.json").exists() or (run / "diverged").exists())


def _run(arm: Arm, runs: Path) -> str:
    """In a process of the pool: trains; returns a line about it."""
    run = runs / arm.directory
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+") as said:
        if arm.processes == 1:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = train(arm.command(run))
        else:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command = [*torchrun, f"--nproc_per_node={arm.processes}", "-m", "pipeflow.train", "--", *arm.command(run)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(arm.threads)}
            code = subprocess.run(command, stdout=said, stderr=said, env=environment, check=False).returncode
        said.seek(0)
        lines = said.read().splitlines()
    if code in (STOPPED, 130):
        os._exit(code)  # asked to stop: this worker goes, and the sweep with it
    last = next((line for line in reversed(lines) if line.startswith("pipeflow: ")), lines[-1] if lines else "")
    if code == 0:
        return lines[-1].split(" (truncated")[0]
    if any(word in last for word in DIVERGED):
        run.mkdir(parents=True, exist_ok=True)
        (run / "diverged").write_text(last.removeprefix("pipeflow: "))
        return f"{arm.directory} diverged: {last}"
    raise RuntimeError(f"{arm.directory} ended with {code}: {last}")
