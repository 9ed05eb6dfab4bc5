"""Saves while training goes on: only the copy to host memory blocks, a thread writes.

Every process writes the parts that it holds; when all have reported theirs, rank 0 makes them a checkpoint. A process
may be ahead of the others' disks, never by more than one checkpoint.
"""

import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..distributed import World
from ..errors import LostError, SaveError
from . import checkpoint
from .checkpoint import CheckpointConfig
from .files import Stream
from .manifest import Manifest
from .run_directory import CHECKPOINTS, RunDirectory

_POLL_S = 0.02


class Saver:
    """Writes the checkpoints of a run; every process has one.

    The run directory is shared by all processes. `step` is where the run begins or goes on: later checkpoints were
    found damaged, and lose their names. Every method raises a SaveError if an earlier checkpoint could not be written.
    """

    def __init__(self, world: World, run: Path, config: CheckpointConfig, step: int = 0) -> None:
        self.world, self.run, self.config = world, RunDirectory(run), config
        self._thread: threading.Thread | None = None
        self._written = threading.Event()
        self._begun = -1  # the step of the last checkpoint that this process has begun to write
        self._returned = world.resume_point is not None  # to processes that may have written more than it knows
        self._error: SaveError | None = None
        self._stream = Stream(self.run.stream(CHECKPOINTS)) if world.rank == 0 else None
        if not world.resume_point:  # else the others are at work on them
            world.on_rank_0(lambda: self._sweep(step))

    def save(self, parts: dict[int, dict[str, Tensor]], manifest: Manifest) -> Path:
        """Copies the tensors and returns where the checkpoint will be some time later; every process must call it.

        `parts`: position → tensors of the parts that this process holds; `manifest` is without `files`.
        """
        began = time.perf_counter()
        self.wait()
        final, first = self.run.checkpoint(manifest.step), self.world.rank == 0
        again = self._returned or self._begun == manifest.step
        if again and (_whole(final) or (not first and self.world.store.get(self._key(manifest.step, self.world.rank)))):
            return final  # saved before a process was lost, which now does so again
        self._begun = manifest.step
        copies = {
            part: {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }
        stall = time.perf_counter() - began
        self._written.clear()
        self._thread = threading.Thread(target=self._write, args=(copies, manifest, stall), daemon=True)
        self._thread.start()
        return final

    def wait(self) -> None:
        """Returns when this process has written its share of the last checkpoint."""
        if self._thread:
            self._thread.join()
        self.check()

    def settle(self) -> None:
        """Returns when the last checkpoint is there. Every process must call it.

        A process that is lost is noticed while all meet, not by a thread that waits for its share.
        """
        if self._thread:
            self._written.wait()
        self.check()
        self.world.barrier()
        self.wait()
        self.world.barrier()

    def check(self) -> None:
        """Raises what went wrong in the background, if anything did."""
        if self._error:
            raise self._error

    def _write(self, copies: dict[int, dict[str, Tensor]], manifest: Manifest, stall: float) -> None:
        """The thread's work; whatever goes wrong is raised later, by the methods that the loop calls."""
        began, world = time.perf_counter(), self.world
        final = self.run.checkpoint(manifest.step)
        partial = final.with_name(final.name + ".partial")
        keys = [self._key(manifest.step, rank) for rank in range(world.size)]
        try:
            written = [checkpoint.write_part(partial, part, tensors) for part, tensors in copies.items()]
            world.store.set(keys[world.rank], written)
            self._written.set()
            if self._stream:
                files = [file for key in keys for file in self._files(key)]
                checkpoint.publish(partial, replace(manifest, files={name: digest for name, digest, _ in files}))
                checkpoint.prune(self.run.path, self.config.keep)
                seconds, size = time.perf_counter() - began, sum(size for *_, size in files)
                self._stream.write(step=manifest.step, stall_s=stall, write_s=seconds, bytes=size)
                self._stream.flush()
        except SaveError as error:
            self._error = error
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            what = f"the checkpoint of step {manifest.step} cannot be written: {why}"
            self._error = SaveError(f"{world.describe()}, step {world.pulse.step}: {what}")
            with suppress(LostError):
                world.store.set(keys[world.rank], str(self._error))
        finally:
            self._written.set()

    @staticmethod
    def _key(step: int, rank: int) -> str:
        return f"saved/{step}/{rank}"

    def _files(self, key: str) -> list[tuple[str, str, int]]:
        """Name, SHA-256 and size of the files that a process has written; waits until it has."""
        while (written := self.world.store.get(key)) is None:
            time.sleep(_POLL_S)
        if isinstance(written, str):
            raise SaveError(written)
        return [(name, digest, size) for name, digest, size in written]

    def _sweep(self, step: int) -> None:
        """Removes what an interrupted save or removal left; what is called a later checkpoint loses its name."""
        for path in list(self.run.checkpoints.glob("step-*")):
            number = path.name.removeprefix("step-")
            if path.suffix in (".partial", ".removed"):
                shutil.rmtree(path, ignore_errors=True)
            elif number.isdecimal() and int(number) > step:  # damaged, or copied by hand and without a manifest
                path.rename(path.with_name(f"{path.name}.damaged-{time.time_ns()}"))


def _whole(directory: Path) -> bool:
    """Whether a checkpoint is there; what is left of a damaged one is none."""
    try:
        return bool(checkpoint.read_manifest(directory))
    except ValueError:
        return False
