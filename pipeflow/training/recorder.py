"""What a run leaves in its directory besides metrics of parts and checkpoints, and what it says on the way.

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

from ..config import micro_batches
from ..data import Pixels, save_sheet
from ..distributed import say, totals
from ..model import Flow, build
from ..storage import Stream, checkpoint, claim, release, rewind
from ..units import rate
from .evaluation import Ledger
from .state import State
from .tensorboard import Board


def refuse_old_run(directory: Path) -> None:
    """A ValueError where the directory holds a run already."""
    if (directory / "config.yaml").exists() or (directory / "checkpoints").exists():
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
            interrupted run wrote behind the step it goes on from is taken back: it comes again.
        last: the step at which the run ends.

    Raises:
        ValueError: the directory cannot be made.
    """

    def __init__(self, state: State, last: int) -> None:
        self.state, self.world, self.last = state, state.world, last
        self._since = (time.perf_counter(), state.step)
        self._samples = isinstance(state.pixels, Pixels)
        self.directory = Path(state.config.run_dir)
        if self.world.standing:  # the others have begun; what is this process's is taken back
            if self.world.rank == 0:
                claim(self.directory)
            names = [f"part-{part + 1}" for part in self.world.mine] + ["evaluation"] * (self.world.rank == 0)
            for name in names:
                rewind(self.directory / "metrics" / f"{name}.jsonl", state.step)
        else:
            self.world.first(self._make)
        self._evaluations: Stream | None = None
        self._board: Board | None = None
        if self.world.rank == 0:
            self._board = Board(self.directory, "model", state.step)
            self._evaluations = Stream(self.directory / "metrics" / "evaluation.jsonl")
        if not self.world.standing:
            say(self.world, _opening(state))

    def phase_begins(self, number: int, schedule: str, steps: int, done: int) -> None:
        """Says what comes, and what it takes where every process is about to hold the whole model."""
        self._since = (time.perf_counter(), self.state.step)
        already = f", {done} of them done" if done else ""
        say(self.world, f"phase {number} of {len(self.state.config.phases)}: {schedule}, {steps} steps{already}")
        if schedule == "end_to_end" and self.world.size > 1:
            say(self.world, self._spread())

    def _spread(self) -> str:
        """Where the model is while it is trained end to end."""
        config, grid = self.state.config, self.world.grid
        if config.pipelined(grid.stages):
            images = config.data.batch // grid.replicas
            pieces = micro_batches(config.end_to_end.micro_batches, images, grid.stages)
            micros = f"{pieces} micro-batches of {images // pieces}"
            return f"every process keeps its own parts; a chain takes its share of a batch as {micros}"
        held = 4 * 4 * self.state.parameters / 2**20  # weights, gradients, two moments; 4 bytes each
        what = "the whole model"
        if config.end_to_end.engine == "fsdp":
            held, what = held / self.world.size, f"a share of the model, 1/{self.world.size}"
        return f"every process now holds {what}: {held:.1f} MiB of weights, gradients and moments, besides activations"

    def evaluated(self, ledger: Ledger) -> None:
        """Writes and says an evaluation."""
        state = self.state
        epoch = state.step * state.config.data.batch / len(state.images.train)
        say(self.world, f"step {state.step}, epoch {epoch:.1f}{self._left()}: {_headline(ledger)}")
        if self._board:
            figures = {
                f"test/truncated behind part {k}": part["bits_per_dim"] for k, part in enumerate(ledger.parts, 1)
            }
            if ledger.bits_per_dim is not None:
                figures["test/model"] = figures.pop(f"test/truncated behind part {len(ledger.parts)}")
            self._board.figures(state.step, figures)
            self._board.flush()
        if self._evaluations:
            self._evaluations.write(step=state.step, epoch=epoch, time=time.time(), **_as_json(ledger))
            self._evaluations.flush()

    def phase_ends(self, ledger: Ledger) -> None:
        """Says where the bits go, and draws samples of images from what was saved, not from what is in memory."""
        say(self.world, ledger.table())
        for name, drift in self.state.ended[-1].get("drift", {}).items():
            say(
                self.world,
                f"  {name.replace('_', ' ').replace('-', ' ')}: inverted inputs lay at most {drift['drift']:.1e} from "
                f"what entered, {drift['relative_drift']:.1e} of its largest number",
            )
        if self.world.rank == 0 and self._samples:
            tensors, _ = checkpoint.load(self.directory / "checkpoints" / f"step-{self.state.step}")
            _, whole = build(self.state.config.model, self.state.pixels, self.state.flow)
            whole.load_global_state(tensors)
            samples = Flow([whole.part], whole.prior, self.state.pixels).sample(64, 0.7)
            path = self.directory / "samples" / f"step-{self.state.step}.png"
            save_sheet(samples, self.state.pixels.levels, path)
            assert self._board
            self._board.sheet(self.state.step, samples, self.state.pixels.levels)
        self.world.exchange(b"")

    def ends(self, ledger: Ledger) -> dict[str, Any]:
        """Writes `result.json`, and returns what it says: bits/dim, seconds, images a second, bytes."""
        world = self.world
        ranks = [json.loads(text) for text in world.exchange(json.dumps(_usage(world.device)).encode())]
        result = {
            "test_bits_per_dim": ledger.bits_per_dim,
            "ledger": _as_json(ledger),
            "seconds": [phase["seconds"] for phase in self.state.ended],
            "images_per_s": [phase["images_per_s"] for phase in self.state.ended],
            "phases": self.state.ended,
            **{name: [rank[name] for rank in ranks] for name in ranks[0]},
            "processes": world.size,
            "replicas": world.grid.replicas,
            "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        if self._evaluations and self._board:
            self._evaluations.close()
            self._board.close()
            release(self.directory)
            (self.directory / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        there = "samples, checkpoints" if self._samples else "checkpoints"
        say(world, _speeds(self.state))
        say(world, f"{self.directory}: {_headline(ledger)}; {there} and result.json are there.")
        world.exchange(b"")
        return result

    def _left(self) -> str:
        """How long all that is left will take, if it goes on like this phase so far."""
        began, first = self._since
        if not first < self.state.step < self.last:
            return ""
        seconds = (time.perf_counter() - began) / (self.state.step - first) * (self.last - self.state.step)
        hours, minutes = divmod(round(seconds / 60), 60)
        return f", about {f'{hours} h ' if hours else ''}{minutes} min left"

    def _make(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--run_dir {self.directory} cannot be made a directory ({error}); give another one."
            ) from error
        if self.world.rank == 0:
            claim(self.directory)
            for file in (self.directory / "metrics").glob("*.jsonl"):
                rewind(file, self.state.step)
            _write_settings(self.directory / "config.yaml", self.state.config.as_yaml(), self.state.step)


def _write_settings(file: Path, text: str, step: int) -> None:
    """Writes the settings; other ones that held until `step` stay beside them."""
    if file.exists() and file.read_text() != text:
        file.rename(file.with_name(f"config-until-step-{step}.yaml"))
    file.write_text(text)


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


def _opening(state: State) -> str:
    config, glow, pixels = state.config, state.config.glow, state.pixels
    grid = state.world.grid
    many = f"{grid.size} processes" if grid.size > 1 else "1 process"
    many = f"{grid.replicas} replicas of {grid.stages} each, {many}" if grid.replicas > 1 else many
    what = "images" if isinstance(pixels, Pixels) else "points"
    name = config.flow if state.flow else f"Glow {glow.levels} × {glow.steps} × {glow.hidden}"
    lines = [
        f"{config.data.name}: {len(state.images.train)} training and {len(state.images.test)} test {what} of "
        f"{pixels.shape}",
        f"{name}, {state.parameters:,} parameters, {config.cut.parts} parts of {' + '.join(map(str, state.sizes))} "
        f"flow steps on {many} ({state.world.device.type})",
    ]
    if what == "points":
        lines.append(f"bits/dim are those of a density: −log p / ({pixels.dims} ln 2), which may be negative")
    return "\n".join(lines)


def _speeds(state: State) -> str:
    """The images per second that each phase reached."""
    reached = [f"phase {number} {rate(phase['images_per_s'])}" for number, phase in enumerate(state.ended, 1)]
    return f"images/s: {', '.join(reached)}"


def _headline(ledger: Ledger) -> str:
    truncated = [f"behind part {number} {part['bits_per_dim']:.4f}" for number, part in enumerate(ledger.parts, 1)]
    if ledger.complete:
        truncated.pop()
    model = "not yet" if ledger.bits_per_dim is None else f"{ledger.bits_per_dim:.4f}"
    return f"test bits/dim of the model {model}" + (f" (truncated {', '.join(truncated)})" if truncated else "")


def _as_json(ledger: Ledger) -> dict[str, Any]:
    return {"bits_per_dim": ledger.bits_per_dim, **dataclasses.asdict(ledger)}
