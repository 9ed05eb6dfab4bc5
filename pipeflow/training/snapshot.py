"""What each process keeps when a segment begins, so that one that is lost in it can be replaced alone.

A checkpoint would not do: its manifest is written when the parts of all processes are there, and here each process
writes for itself, once per segment, what only its own replacement reads. So a snapshot is one safetensors file: this
process's parts, by the names of a checkpoint, and the run's progress in its header.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..distributed import ResumePoint
from ..storage import write_whole
from .progress import Progress
from .state import State


def keep_snapshot(state: State, at: ResumePoint) -> None:
    """Writes this process's parts, as they are at the beginning of a segment, unless it has done so."""
    if state.kept == at:
        return
    tensors: dict[str, Tensor] = {}
    for part in state.run.world.mine:
        tensors |= state.weights.part_state(part)
    copies = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    progress = dataclasses.asdict(state.progress) | {"learned": sorted(state.progress.learned)}
    file = _file(state, at)
    file.parent.mkdir(exist_ok=True)
    write_whole(file, save(copies, {"progress": json.dumps(progress)}))
    state.kept = at
    # Until all have written theirs, a process that is lost comes back to the segment before.
    for old in _files(state)[:-2]:
        old.unlink()


def load_snapshot(state: State, at: ResumePoint) -> None:
    """Gives a fresh state what this process kept when the segment began.

    Raises:
        ValueError: there is nothing, or it is damaged.
    """
    file = _file(state, at)
    try:
        with safe_open(file, "pt") as kept:
            progress = json.loads(kept.metadata()["progress"])
            tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # the reader has an exception class of its own
        raise ValueError(f"{file}: {error}") from error
    for part in state.run.world.mine:
        state.weights.slices[part].load_global_state(tensors)
    state.weights.take_slots(tensors)
    state.progress = Progress(**progress | {"learned": set(progress["learned"])})


def remove_snapshots(state: State) -> None:
    """Removes what all processes have kept: the run is over, or begins another life, maybe with fewer of them.

    Every process must call it.
    """

    def remove() -> None:
        for file in state.run.directory.rejoin.glob("rank-*.safetensors*"):
            file.unlink()

    state.run.world.on_rank_0(remove)


def _files(state: State) -> list[Path]:
    """The snapshots of this process, in order."""
    files = state.run.directory.rejoin.glob(f"rank-{state.run.world.rank}-*.safetensors")

    def point(file: Path) -> Any:
        return [int(number) for number in file.stem.split("-")[1:]]

    return sorted(files, key=point)


def _file(state: State, at: ResumePoint) -> Path:
    return state.run.directory.rejoin / f"rank-{state.run.world.rank}-{at.phase}-{at.step}.safetensors"
