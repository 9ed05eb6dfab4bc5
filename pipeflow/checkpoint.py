"""Checkpoints: a safetensors file a part and a manifest that makes them one.

`torch.save` pickles, and unpickling runs code. Weights, provisional priors and optimizer moments are saved by global
parameter name, each part by the process that holds it; the manifest, with a checksum of every file, is written last and
the directory renamed into place after it, so that a directory called `step-<n>` is always whole.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from .world import World

FORMAT = 1


def save(world: World, run: Path, step: int, parts: dict[int, dict[str, Tensor]], about: dict[str, Any]) -> Path:
    """Writes `run/checkpoints/step-<step>/`; every process must call it.

    Args:
        world: the processes.
        run: the run directory, shared by all processes.
        step: batches drawn at the head so far.
        parts: position → tensors of the parts that this process holds.
        about: what else the manifest says: config, cut, phase.

    Returns:
        The directory.
    """
    final = run / "checkpoints" / f"step-{step}"
    partial = final.with_name(final.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    sums = {}
    for part, tensors in parts.items():
        file = partial / f"part-{part + 1}.safetensors"
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, file)
        sums[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        _sync(file)
    everyone = world.exchange(json.dumps(sums).encode())
    if world.rank == 0:
        files = {name: digest for text in everyone for name, digest in sorted(json.loads(text).items())}
        manifest = partial / "manifest.json"
        manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files, **about}, indent=2) + "\n")
        _sync(manifest)
        partial.rename(final)
        _sync(final.parent)
    world.exchange(b"")
    return final


def load(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a checkpoint by global name, and its manifest.

    Raises:
        ValueError: no manifest, a file that is missing or damaged, or a format of another version.
    """
    manifest_file = directory / "manifest.json"
    if not manifest_file.is_file():
        raise ValueError(f"{directory} is no checkpoint: it has no manifest.json.")
    try:
        manifest = json.loads(manifest_file.read_text())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise ValueError(f"{manifest_file} is damaged: it is no JSON object.")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{directory} has checkpoint format {manifest.get('format')}; this version reads {FORMAT}.")
    tensors: dict[str, Tensor] = {}
    for name, digest in manifest["files"].items():
        file = directory / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{file} is missing or damaged: its checksum is not the manifest's.")
        tensors |= load_file(file)
    return tensors, manifest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
