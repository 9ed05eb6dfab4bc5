"""What a run leaves in its directory besides metrics of parts and checkpoints, and when it says what.

`config.yaml` when it begins, a line of `metrics/evaluation.jsonl` and of standard output at every evaluation, a sheet
of samples after every phase, `result.json` at the end: all by the first process, so that nothing is said twice.
"""

import dataclasses
import json
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..data import Pixels, Split, sheet_png
from ..distributed import launch_name, say, totals
from ..errors import SaveError
from ..model import Flow, build
from ..storage import (
    EVALUATION,
    MODEL,
    RunDirectory,
    Stream,
    checkpoint,
    claim,
    is_later_life,
    note_launch,
    part_stream,
    rewind,
    write_whole,
)
from . import messages
from .evaluation import Ledger
from .state import State
from .tensorboard import Board


def refuse_old_run(directory: Path) -> None:
    """A ValueError where the directory holds a run already, and not what an earlier life of this one began to make."""
    again = is_later_life(directory) and not checkpoint.steps_saved(directory)
    if RunDirectory(directory).holds_run() and not again:
        raise ValueError(
            f"{directory} already holds a run, which is never written over. Go on with it by --resume auto, give the "
            "new run another directory with --run_dir DIR, or rename or remove the old one."
        )
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--run_dir {directory} is a file; it must be a directory, or not exist yet.")


class Record:
    """The record of one run.

    Args:
        state: the run, about to begin or to go on; the directory is made and the settings are written. What an
            interrupted run wrote after the step it goes on from is taken back: it comes again.
        last: the step at which the run ends.

    Raises:
        ValueError: the directory cannot be made or written.
    """

    def __init__(self, state: State, last: int) -> None:
        self.run, self.progress, self.world = state.run, state.progress, state.run.world
        self.last = last
        self._since = (time.perf_counter(), state.progress.step)
        self._samples = isinstance(state.run.space, Pixels)
        self.directory = state.run.directory
        if self.world.resume_point:  # the others have begun; what this process alone wrote is taken back
            claim(self.directory.path, self.world.rank)
            names = [part_stream(part) for part in self.world.mine] + [EVALUATION] * (self.world.rank == 0)
            for name in names:
                rewind(self.directory.stream(name), state.progress.step)
        else:
            launches = self.world.gather(launch_name())
            self.world.on_rank_0(lambda: self._begin(launches))
        self._evaluations: Stream | None = None
        self._board: Board | None = None
        if self.world.rank == 0:
            self._board = Board(self.directory.tensorboard(MODEL), state.progress.step)
            self._evaluations = Stream(self.directory.stream(EVALUATION))
        if not self.world.resume_point:
            say(self.world, messages.opening(self.run))

    def phase_begins(self, number: int, steps: int, done: int) -> None:
        """Says what comes, and what it takes where every process is about to hold the whole model."""
        self._since = (time.perf_counter(), self.progress.step)
        say(self.world, messages.phase_opening(self.run, number, steps, done))

    def evaluated(self, ledger: Ledger, split: Split) -> None:
        """Writes and says an evaluation on a split."""
        step = self.progress.step
        epoch = step * self.run.config.data.batch / len(self.run.images.train)
        say(self.world, f"step {step}, epoch {epoch:.1f}{self._left()}: {messages.headline(ledger, split)}")
        if self._board:
            figures = {
                f"{split}/truncated after part {k}": part["bits_per_dim"] for k, part in enumerate(ledger.parts, 1)
            }
            if ledger.bits_per_dim is not None:
                figures[f"{split}/model"] = figures.pop(f"{split}/truncated after part {len(ledger.parts)}")
            self._board.figures(step, figures)
            self._board.flush()
        validated = self.run.images.validation is not None
        if self._evaluations and (split == "validation" or not validated):  # of the test split then, result.json tells
            named = {"split": split} if validated else {}
            self._evaluations.write(step=step, epoch=epoch, time=time.time(), **named, **_as_json(ledger))
            self._evaluations.flush()

    def phase_ends(self, ledger: Ledger) -> None:
        """Says where the bits go, and draws samples of images from what was saved, not from what is in memory."""
        say(self.world, ledger.table())
        if self.world.rank == 0 and self._samples:
            self._draw_samples()
        self.world.barrier()

    def _draw_samples(self) -> None:
        step, levels = self.progress.step, self.run.space.levels
        try:
            tensors, _ = checkpoint.load(self.directory.checkpoint(step))
        except ValueError as error:
            raise SaveError(f"what was saved at step {step} cannot be read again: {error}") from error
        _, whole = build(self.run.config.model, self.run.space, self.run.flow)
        whole.load_global_state(tensors)
        flow = Flow([whole.part], whole.prior, self.run.space).to(self.world.device)
        labels = [label for label in range(min(flow.classes, 10)) for _ in range(8)] or None  # a row of each
        samples = flow.sample(len(labels or range(64)), 0.7, labels=labels).cpu()
        self.directory.samples.mkdir(exist_ok=True)
        write_whole(self.directory.sample(step), sheet_png(samples, levels))
        assert self._board
        self._board.sheet(step, samples, levels)

    def ends(self, last: Ledger, ledger: Ledger) -> dict[str, Any]:
        """Writes `result.json`, and returns what it says: bits/dim, seconds, images a second, bytes.

        Args:
            last: the last evaluation while training, on the validation split if there is one.
            ledger: the evaluation on the test split.
        """
        world, validated = self.world, self.run.images.validation is not None
        ranks = world.gather(_usage(world.device))
        result = {
            "test_bits_per_dim": None if self.run.config.noise else ledger.bits_per_dim,
            **({"validation_bits_per_dim": None if self.run.config.noise else last.bits_per_dim} if validated else {}),
            "ledger": _as_json(ledger),
            "seconds": [phase["seconds"] for phase in self.progress.ended],
            "images_per_s": [phase["images_per_s"] for phase in self.progress.ended],
            "phases": self.progress.ended,
            **{name: [rank[name] for rank in ranks] for name in ranks[0]},
            "processes": world.size,
            "replicas": list(world.grid.sharers) or world.grid.replicas,
            "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        if self._evaluations and self._board:
            self._evaluations.close()
            self._board.close()
            write_whole(self.directory.result, json.dumps(result, indent=2) + "\n")
        there = "samples, checkpoints" if self._samples else "checkpoints"
        say(world, messages.speeds(self.progress))
        say(world, f"{self.directory.path}: {messages.headline(ledger)}; {there} and result.json are there.")
        world.barrier()
        return result

    def _left(self) -> str:
        """How long all that is left will take, if it goes on like this phase so far."""
        (began, first), step = self._since, self.progress.step
        if not first < step < self.last:
            return ""
        return messages.time_left((time.perf_counter() - began) / (step - first) * (self.last - step))

    def _begin(self, launches: list[str]) -> None:
        """Makes the directory ready: this launch has it alone, and what comes again is taken back."""
        directory, step = self.directory, self.progress.step
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
            if claim(directory.path):  # it was not there when the run was prepared; another one may have begun since
                refuse_old_run(directory.path)
            note_launch(directory.path, launches)
            for file in directory.metrics.glob("*.jsonl"):
                rewind(file, step)
            text, until = self.run.config.as_yaml(), directory.settings_until(step)
            changed = directory.settings.exists() and directory.settings.read_text() != text
            if changed and not until.exists():  # else these settings have led to no checkpoint, and are void
                directory.settings.rename(until)
            write_whole(directory.settings, text)
        except OSError as error:
            raise ValueError(f"--run_dir {directory.path} cannot be written ({error}); give another one.") from error


def _usage(device: torch.device) -> dict[str, int]:
    """Of this process so far: peak memory, and what its TCP sockets that are still open have carried."""
    sent, received = totals()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_memory_bytes": resident * (1 if sys.platform == "darwin" else 1024),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        "bytes_sent": sent,
        "bytes_received": received,
    }


def _as_json(ledger: Ledger) -> dict[str, Any]:
    return {"bits_per_dim": ledger.bits_per_dim, **dataclasses.asdict(ledger)}
