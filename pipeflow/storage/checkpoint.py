"""Checkpoints on disk: a safetensors file per part, and a manifest that makes them one.

`torch.save` pickles, and unpickling runs code. Weights, provisional priors and optimizer moments are saved by global
parameter name, each part by the process that holds it; the manifest, with a checksum of every file, is written last and
the directory renamed into place after it, so that a directory called `step-<n>` is complete. On resume one process
verifies the checksums; each then reads the tensors of its own parts by name, whichever file they are in.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as bytes_of
from torch import Tensor

from ..settings import AtLeast1, settings
from .files import sync_folder, write_whole
from .manifest import Manifest
from .manifest import read_manifest as read_manifest
from .run_directory import MANIFEST, RunDirectory


@settings("checkpoint")
@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, besides the end of every phase.

    Attributes:
        every: steps between two checkpoints; None saves only at the end of every phase.
        keep: how many of the newest stay; the best by bits/dim on the validation split stays as well, or on the test
            split if there is none.
    """

    every: AtLeast1 | None = 1000
    keep: AtLeast1 = 3


def write_part(partial: Path, part: int, tensors: dict[str, Tensor]) -> tuple[str, str, int]:
    """Writes a part's file into a directory that is not a checkpoint yet; returns its name, SHA-256 and bytes."""
    for folder in (partial.parent, partial):
        folder.mkdir(exist_ok=True)
    data = bytes_of(tensors)
    name = f"part-{part + 1}.safetensors"
    write_whole(partial / name, data, durable=True)
    return name, hashlib.sha256(data).hexdigest(), len(data)


def publish(partial: Path, manifest: Manifest) -> Path:
    """Writes the manifest, when all files are there, and gives the directory its name, `step-<n>`."""
    final = partial.with_name(f"step-{manifest.step}")
    write_whole(partial / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=2) + "\n", durable=True)
    sync_folder(partial)
    partial.rename(final)
    sync_folder(final.parent)
    return final


def steps_saved(run: Path) -> list[int]:
    """Steps of the checkpoints of a run, damaged or not, in order."""
    return RunDirectory(run).saved_steps()


def prune(run: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints and the best by bits/dim (`Manifest.bits_per_dim`)."""
    steps = steps_saved(run)
    scores: dict[int, float] = {}
    for step in steps:
        with suppress(ValueError):  # a damaged one
            bits = read_manifest(RunDirectory(run).checkpoint(step)).bits_per_dim
            scores |= {step: bits} if bits is not None and math.isfinite(bits) else {}
    best = min(scores, key=lambda step: scores[step], default=None)
    for step in steps[:-keep]:
        if step != best:
            discard(RunDirectory(run).checkpoint(step))


def discard(directory: Path) -> None:
    """Removes a checkpoint; half of it is never taken for one."""
    removed = directory.with_name(directory.name + ".removed")
    directory.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def verify(directory: Path) -> Manifest:
    """Reads every file of a checkpoint once and compares it with its checksum; returns the manifest.

    A ValueError says that there is no manifest, which file is missing or damaged, or that its format is another.
    """
    manifest = read_manifest(directory)
    for name, digest in manifest.files.items():
        file = directory / name
        if not file.is_file():
            raise ValueError(f"{file} is missing, but the manifest names it.")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise ValueError(f"{file} is damaged: its checksum is not the manifest's.")
    locate_tensors(directory, manifest)
    return manifest


def locate_tensors(directory: Path, manifest: Manifest) -> dict[str, Path]:
    """Global name → the file that holds the tensor; reads the heads of the files only.

    A ValueError says which file is no safetensors file, or holds a tensor of a name that another one holds.
    """
    found: dict[str, Path] = {}
    for file in (directory / name for name in manifest.files):
        with _opened(file) as tensors:
            names = list(tensors.keys())
        if twice := sorted(found.keys() & names):
            raise ValueError(f"{file} holds {twice[0]}, which another part of this checkpoint holds as well.")
        found |= dict.fromkeys(names, file)
    return found


def read_tensors(located: Mapping[str, Path], names: Collection[str]) -> dict[str, Tensor]:
    """Reads some tensors by global name, and nothing of the others; nothing in a file is ever run as code.

    `located` is what `locate_tensors` returned; names that are not in it are left out.
    """
    wanted: dict[Path, list[str]] = {}
    for name in names:
        if name in located:
            wanted.setdefault(located[name], []).append(name)
    read: dict[str, Tensor] = {}
    for file, members in wanted.items():
        with _opened(file) as tensors:
            read |= {name: tensors.get_tensor(name).clone() for name in members}  # off the file, and aligned
    return read


def load(directory: Path) -> tuple[dict[str, Tensor], Manifest]:
    """All tensors of a checkpoint by global name, and its manifest, after `verify`."""
    manifest = verify(directory)
    located = locate_tensors(directory, manifest)
    return read_tensors(located, located), manifest


def newest(run: Path, accept: Callable[[Path], object] = verify) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is not damaged, if there is one, and what is wrong with newer ones.

    `accept` reads a checkpoint, and raises a ValueError if it is damaged.
    """
    wrong: list[str] = []
    for step in reversed(steps_saved(run)):
        directory = RunDirectory(run).checkpoint(step)
        try:
            accept(directory)
        except ValueError as error:
            wrong.append(str(error))
        else:
            return directory, wrong
    return None, wrong


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        opened = safe_open(file, "pt")
    except Exception as error:  # the reader has an exception class of its own
        raise ValueError(f"{file} is no safetensors file ({error}).") from error
    with opened as tensors:
        yield tensors
