"""Checkpoints on disk: a safetensors file a part and a manifest that makes them one.

`torch.save` pickles, and unpickling runs code. Weights, provisional priors and optimizer moments are saved by global
parameter name, each part by the process that holds it; the manifest, with a checksum of every file, is written last and
the directory renamed into place after it, so that a directory called `step-<n>` is always whole.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_from
from safetensors.torch import save as bytes_of
from torch import Tensor

FORMAT = 2


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, besides the end of every phase.

    Attributes:
        every: steps between two checkpoints; None saves only at the end of every phase.
        keep: how many of the newest stay; the best by test bits/dim stays as well.
    """

    every: int | None = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"checkpoint.{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself; everything that a run needs to go on, besides the tensors.

    Attributes:
        step: batches drawn at the head so far.
        config: the run's settings, with an explicit cut.
        at: how many flow steps lie before each border.
        image: channels, height and width of an image, or shape of a point.
        levels: values of a stored pixel; 0 for points.
        begun: the step at which the first phase of these settings began.
        phases: for each phase that has ended, what `result.json` will say of it.
        elapsed: seconds that the phase in progress has taken: "seconds" in all, "train_seconds" without evaluations.
        started: how many flow steps have had their data-dependent start.
        moments_of: the kind of optimizer that the moments belong to.
        test_bits_per_dim: of the model at this step; None where it was not evaluated.
        versions: of the libraries that computed it.
        files: file name → SHA-256.
        own: short hashes of what a script has handed over, "flow" and "data"; settings do not tell them apart.
        format: version of this layout.
    """

    step: int
    config: dict[str, Any]
    at: list[int]
    image: list[int]
    levels: int
    begun: int
    phases: list[dict[str, Any]]
    elapsed: dict[str, float]
    started: int
    moments_of: str | None
    test_bits_per_dim: float | None
    versions: dict[str, str]
    files: dict[str, str]
    own: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


def write_part(partial: Path, part: int, tensors: dict[str, Tensor]) -> tuple[str, str, int]:
    """Writes a part's file into a directory that is not a checkpoint yet.

    Returns:
        Its name, its SHA-256 and its size in bytes.

    Raises:
        OSError: the disk is full, or refuses.
    """
    partial.mkdir(parents=True, exist_ok=True)
    data = bytes_of(tensors)
    name = f"part-{part + 1}.safetensors"
    _write(partial / name, data)
    return name, hashlib.sha256(data).hexdigest(), len(data)


def publish(partial: Path, manifest: Manifest) -> Path:
    """Writes the manifest, when all files are there, and gives the directory its name, `step-<n>`."""
    final = partial.with_name(f"step-{manifest.step}")
    _write(partial / "manifest.json", (json.dumps(dataclasses.asdict(manifest), indent=2) + "\n").encode())
    _sync(partial)
    partial.rename(final)
    _sync(final.parent)
    return final


def steps_saved(run: Path) -> list[int]:
    """Steps of the checkpoints of a run, whole or not, in order."""
    names = [path.name for path in (run / "checkpoints").glob("step-*") if (path / "manifest.json").is_file()]
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name))


def run_of(directory: Path) -> Path:
    """The run directory that a checkpoint lies in, resolved."""
    return directory.resolve().parent.parent


def prune(run: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints and the best by test bits/dim."""
    steps = steps_saved(run)
    scores = {}
    for step in steps:
        bits = json.loads((run / "checkpoints" / f"step-{step}" / "manifest.json").read_text())["test_bits_per_dim"]
        if bits is not None:
            scores[step] = bits
    best = [min(scores, key=lambda step: scores[step])] if scores else []
    for step in set(steps[:-keep]) - set(best):
        discard(run / "checkpoints" / f"step-{step}")


def discard(directory: Path) -> None:
    """Removes a checkpoint; it loses its name first, so that half of one is never taken for a whole."""
    removed = directory.with_name(directory.name + ".removed")
    directory.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint, its form checked.

    Raises:
        ValueError: there is none, it is damaged, or its format is of another version.
    """
    file = directory / "manifest.json"
    if not file.is_file():
        raise ValueError(f"{directory} is no checkpoint: it has no manifest.json.")
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it is no JSON object.")
    if found.get("format") != FORMAT:
        raise ValueError(f"{directory} has checkpoint format {found.get('format')}; this version reads {FORMAT}.")
    found.setdefault("own", {})  # not known to checkpoints of earlier versions
    for name, sound in _SOUND.items():
        if name not in found or not sound(found[name]):
            said = f"{name} is {json.dumps(found[name])[:80]}" if name in found else f"{name} is missing"
            raise ValueError(f"{file} is damaged: {said}.")
    if found["levels"] and len(found["image"]) != 3:
        raise ValueError(f"{file} is damaged: image is {json.dumps(found['image'])[:80]}.")
    if unknown := sorted(set(found) - set(_SOUND)):
        raise ValueError(f"{file} is damaged: {unknown[0]} is no entry of a manifest.")
    if directory.name.startswith("step-") and directory.name != f"step-{found['step']}":
        raise ValueError(f"{file} is of step {found['step']}, which is not what its directory is called.")
    return Manifest(**found)


def load(directory: Path) -> tuple[dict[str, Tensor], Manifest]:
    """All tensors of a checkpoint by global name, and its manifest; nothing in it is ever run as code.

    Raises:
        ValueError: no manifest, a file that is missing or damaged, or a format of another version.
    """
    manifest = read_manifest(directory)
    tensors: dict[str, Tensor] = {}
    for name, digest in manifest.files.items():
        file = directory / name
        if not file.is_file():
            raise ValueError(f"{file} is missing, but the manifest names it.")
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{file} is damaged: its checksum is not the manifest's.")
        try:
            found = tensors_from(data)
        except Exception as error:  # the reader has an exception class of its own
            raise ValueError(f"{file} is no safetensors file ({error}).") from error
        if twice := sorted(tensors.keys() & found.keys()):
            raise ValueError(f"{file} holds {twice[0]}, which another part of this checkpoint holds as well.")
        tensors |= found
    return tensors, manifest


def load_part(directory: Path, part: int) -> dict[str, Tensor]:
    """The tensors in one part's file, by global name."""
    return tensors_from((directory / f"part-{part + 1}.safetensors").read_bytes())


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, if there is one, and what is wrong with those that are newer."""
    wrong = []
    for step in reversed(steps_saved(run)):
        directory = run / "checkpoints" / f"step-{step}"
        try:
            load(directory)
        except ValueError as error:
            wrong.append(str(error))
        else:
            return directory, wrong
    return None, wrong


def _whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _files(value: Any) -> bool:
    names = [f"part-{number}.safetensors" for number in range(1, len(value) + 1)] if isinstance(value, dict) else []
    return bool(names) and sorted(value) == sorted(names) and all(isinstance(digest, str) for digest in value.values())


def _hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values())


# What every entry of a manifest has to be.
_SOUND = {
    "format": _whole_number,
    "step": _whole_number,
    "config": lambda value: isinstance(value, dict),
    "at": lambda value: isinstance(value, list) and all(map(_whole_number, value)),
    "image": lambda value: isinstance(value, list) and bool(value) and all(map(_whole_number, value)),
    "levels": _whole_number,
    "begun": _whole_number,
    "phases": lambda value: isinstance(value, list) and all(isinstance(phase, dict) for phase in value),
    "elapsed": lambda value: (
        isinstance(value, dict) and sorted(value) == ["seconds", "train_seconds"] and all(map(_number, value.values()))
    ),
    "started": _whole_number,
    "moments_of": lambda value: value is None or isinstance(value, str),
    "test_bits_per_dim": lambda value: value is None or _number(value),
    "versions": lambda value: isinstance(value, dict),
    "files": _files,
    "own": _hashes,
}


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
