"""Going on from a checkpoint: exactly, in another cut, in other processes, or with other phases.

What a run has done cannot change: model, data, seed and the phases that have begun are the checkpoint's. How it is
spread may: parts are cut anew by global name, and what a new cut has no place for is said, never silently dropped.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from . import checkpoint
from .checkpoint import Manifest
from .config import Config, parse_resume
from .objective import Truncated
from .plain import settings_in
from .state import State, build

Resume = Path | Literal["auto"] | None

# Settings of a run's past, and those members of them that may differ all the same.
_PAST: dict[str, set[str]] = {"seed": set(), "flow": set(), "glow": set(), "data": {"root", "on_corrupt"}}


def settle(arguments: Sequence[str], base: Config | None = None) -> tuple[Config, Resume]:
    """Command line → settings, and where to go on from.

    With `--resume`, what the command line leaves open is the checkpoint's; and a process that torchrun has restarted,
    which has the same command line as before, goes on with its run as if it said `--resume auto`.

    Args:
        arguments: dotted names and values.
        base: the settings that they override; the quickstart by default.

    Raises:
        ValueError: settings that are wrong, or a path that is no checkpoint.
    """
    config, wish = parse_resume(arguments) if base is None else _filled(arguments, base.as_dict())
    run = Path(config.run)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and (wish is None or checkpoint.steps_saved(run)):
        wish = "auto"
    if wish is None:
        return config, None
    source, run = _readable(run) if wish == "auto" else _named(Path(wish), Path((base or Config()).run))
    if source:
        then, told = checkpoint.read_manifest(source).config, source
    elif (run / "config.yaml").is_file():  # interrupted before its first checkpoint
        then, told = yaml.safe_load((run / "config.yaml").read_text()), run / "config.yaml"
    else:
        return config, "auto"
    try:
        config, _ = _filled(arguments, then | {"run": str(run)})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"With the settings of {told}: {error}") from error
    at = checkpoint.read_manifest(source).at if source else then["cut"]["at"] or []
    if config.cut.scheme == "balanced" and len(at) == config.cut.parts - 1:
        cut = dataclasses.replace(config.cut, scheme="explicit", at=at)  # measured once
        config = dataclasses.replace(config, cut=cut)
    return config, "auto" if wish == "auto" else source


def find(config: Config, resume: Resume) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is to be said about it.

    Raises:
        ValueError: the checkpoints of the run are damaged, all of them; or the run goes on behind this one.
    """
    run = Path(config.run)
    if resume is None:
        return None, []
    if resume != "auto":
        if checkpoint.run_of(resume) == run.resolve():
            behind = [step for step in checkpoint.steps_saved(run) if step > checkpoint.read_manifest(resume).step]
            if behind:
                raise ValueError(
                    f"{run} goes on to step {behind[-1]}, behind {resume.name}. Give the branch that begins here a "
                    "directory of its own with --run DIR."
                )
        return resume, []
    source, wrong = checkpoint.newest(run)
    if source is None and wrong:
        raise ValueError(f"{run} has no whole checkpoint: {' '.join(wrong)}")
    return source, wrong or ([] if source else [f"{run} has no checkpoint yet: the run starts afresh"])


def restore(state: State, source: Path) -> list[str]:
    """Gives a fresh state what a checkpoint holds.

    Returns:
        What could not be carried over, in sentences; nothing where the run goes on exactly.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to another model or another past.
    """
    tensors, manifest = checkpoint.load(source)
    same_phases = _check_past(state.config, manifest, source)
    check_own(state.own, manifest, source)
    expected = check_tensors(build(state.config, state.pixels, state.flow)[0].values(), tensors, source)
    said = [f"goes on from {source}"]
    if manifest.at != state.borders[:-1]:
        said.append(f"cut anew: borders at {state.borders[:-1]}, in the checkpoint at {manifest.at}")
        new = {_owner(name) for name in expected.keys() - tensors.keys()}
        left = {_owner(name) for name in tensors if _provisional(name)} - {_owner(name) for name in expected}
        said += [f"{name} starts afresh: the checkpoint has no border there" for name in sorted(new)]
        said += [f"{name} is not carried over: no part has it any more" for name in sorted(left)]
    for part in state.world.mine:
        state.chain.slices[part].load_global_state(expected | tensors)
    mine = {name for part in state.world.mine for name in state.chain.slices[part].global_state()}
    state.take_slots({name: tensor for name, tensor in tensors.items() if name.split("/", 1)[-1] in mine})
    state.moments_of, state.step = manifest.moments_of, manifest.step
    state.world.pulse.step = state.step
    state.learned = {part for part, end in enumerate(state.borders) if end <= manifest.started}
    if same_phases:
        state.begun, state.ended, state.elapsed = manifest.begun, manifest.phases, manifest.elapsed
    else:
        state.begun = manifest.step
        said.append(f"other phases than the checkpoint's: the first of them begins here, at step {manifest.step}")
    return said


def _readable(run: Path) -> tuple[Path | None, Path]:
    """The newest checkpoint whose settings can be read; whether it is whole, `find` will see."""
    for step in reversed(checkpoint.steps_saved(run)):
        directory = run / "checkpoints" / f"step-{step}"
        try:
            checkpoint.read_manifest(directory)
        except ValueError:
            continue
        return directory, run
    return None, run


def _named(path: Path, otherwise: Path) -> tuple[Path, Path]:
    """A checkpoint, or a run, whose newest it then is; and the run that it belongs to, `otherwise` if to none."""
    if (path / "checkpoints").is_dir():
        found, wrong = checkpoint.newest(path)
        if found is None:
            raise ValueError(f"{path} has no whole checkpoint. {' '.join(wrong)}")
        return found, path
    checkpoint.read_manifest(path)
    if path.resolve().parent.name == "checkpoints":
        return path, checkpoint.run_of(path)
    return path, otherwise


def _filled(arguments: Sequence[str], base: dict[str, Any]) -> tuple[Config, str | None]:
    """The settings of a command line, what it leaves open from `base`, and what `--resume` says."""
    words: list[str] = []
    given: dict[str, Any] = {}
    for word, after in pairwise([*arguments, ""]):
        file = after if word == "--config" else word.removeprefix("--config=") if word.startswith("--config=") else None
        if file is not None:
            found = settings_in(Path(file))
            given |= found
            words += ["--phases=[]"] * ("phases" in found)  # a list is given whole
        words.append(word)
    if "cut" in given or any(re.match(r"--cut\.(scheme|parts|at)", word) for word in arguments):
        base = base | {"cut": {"provisional_prior": base["cut"]["provisional_prior"]}}
    return parse_resume(words, base)


def _check_past(config: Config, manifest: Manifest, source: Path) -> bool:
    """Whether the phases are the checkpoint's; a ValueError where another part of the past differs."""
    now, then = config.as_dict(), {"flow": "glow"} | manifest.config
    for name, free in _PAST.items():
        new, old = now[name], then.get(name)
        if not isinstance(new, dict) or not isinstance(old, dict):
            new, old = {"": new}, {"": old}
        for member in sorted((new.keys() | old.keys()) - free):
            if new.get(member) != old.get(member):
                setting = f"{name}.{member}".rstrip(".")
                raise ValueError(
                    f"{setting} is {new.get(member)}, but {old.get(member)} in {source}: what a run has begun with "
                    "cannot change. Leave it out, or start a new run."
                )
    past = len(manifest.phases) + 1
    if now["phases"][:past] == then.get("phases", [])[:past]:
        return True
    if checkpoint.run_of(source) == Path(config.run).resolve():
        raise ValueError(
            f"The phases differ from those that {config.run} has begun with. To begin other phases from its weights, "
            "give the new run a directory of its own with --run DIR."
        )
    return False


def check_tensors(pieces: Iterable[Truncated], tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """A ValueError where the tensors are not the model's: names, shapes, kinds, finite values.

    Returns:
        The pieces' own state by global name; what the tensors lack of it are provisional priors.
    """
    expected = {name: tensor for piece in pieces for name, tensor in piece.global_state().items()}
    if missing := [name for name in expected if name not in tensors and not _provisional(name)]:
        raise ValueError(
            f"{source} lacks {missing[0]}, which the model has: it belongs to another model, or is damaged."
        )
    for name, tensor in tensors.items():
        model = expected.get(name.split("/", 1)[-1])
        if model is None:
            if _provisional(name):
                continue
            raise ValueError(f"{source} holds {name}, which the model does not have: it belongs to another model.")
        shape = torch.Size() if name.startswith("step/") else model.shape
        if tensor.shape != shape:
            raise ValueError(f"{source} holds {name} of shape {tuple(tensor.shape)}; here it must be {tuple(shape)}.")
        if tensor.dtype != model.dtype:
            raise ValueError(f"{source} holds {name} as {tensor.dtype}; here it must be {model.dtype}.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{source} holds values of {name} that are not finite.")
    return expected


def check_own(own: dict[str, str], manifest: Manifest, source: Path) -> None:
    """A ValueError where a script hands over another flow, or other data, than those of the checkpoint."""
    for what, digest in own.items():
        if manifest.own.get(what, digest) != digest:
            raise ValueError(
                f"The {what} handed over {'is' if what == 'flow' else 'are'} not what {source} was made with (hash "
                f"{digest}, there {manifest.own[what]}); what a run has begun with cannot change. Hand over the same, "
                "or start a new run."
            )


def _provisional(name: str) -> bool:
    return name.split("/", 1)[-1].startswith("provisional.")


def _owner(name: str) -> str:
    """The module that a parameter, or its moments, belong to."""
    return name.split("/", 1)[-1].rsplit(".", 1)[0]
