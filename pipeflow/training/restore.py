"""Going on from a checkpoint: exactly, in another cut, in other processes, or with other phases.

What a run has done cannot change: model, data, seed and the phases that have begun are the checkpoint's. How it is
spread may: parts are cut anew by global name, and what a new cut has no use for is reported, never silently dropped.
"""

from collections.abc import Collection
from pathlib import Path

from ..config import Config, Resume, from_dict
from ..model import FAMILIES, build, global_state
from ..storage import (
    Manifest,
    check_names,
    check_own,
    check_values,
    checkpoint,
    is_provisional,
    owner_of,
    run_of,
)
from .run import Run
from .state import State

# Settings of a run's past, and those members of them that may differ all the same.
_PAST: dict[str, set[str]] = {"seed": set(), "flow": set(), "data": {"root", "on_corrupt"}}


def find(config: Config, resume: Resume) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, its checksums verified, and what is to be said about it; the work of one process.

    Raises:
        ValueError: the checkpoint is damaged, or all of the run's are; or the run goes on after this one.
    """
    run = Path(config.run_dir)
    if resume is None:
        return None, []
    if resume != "auto" and not (resume / "checkpoints").is_dir():
        step = checkpoint.verify(resume).step
        after = [saved for saved in checkpoint.steps_saved(run) if saved > step]
        if after and run_of(resume) == run.resolve():
            raise ValueError(
                f"{run} goes on to step {after[-1]}, after {resume.name}. Give the branch that begins here a directory "
                "of its own with --run_dir DIR."
            )
        return resume, []
    origin = run if resume == "auto" else resume
    source, wrong = checkpoint.newest(origin)
    if source is None and (wrong or resume != "auto"):
        raise ValueError(f"{origin} has no whole checkpoint. {' '.join(wrong)}".strip())
    return source, wrong or ([] if source else [f"{run} has no checkpoint yet: the run starts afresh"])


def restore(state: State, source: Path) -> list[str]:
    """Gives a fresh state what a verified checkpoint holds; each process reads the tensors of its own parts.

    Every process must call it; what is wrong in one of them is everyone's error.

    Returns:
        What could not be carried over, in sentences; nothing where the run goes on exactly.

    Raises:
        ValueError: the checkpoint belongs to another model or another past, or holds values that are not finite.
    """
    run, weights, progress = state.run, state.weights, state.progress
    manifest = checkpoint.read_manifest(source)
    if (tuple(manifest.image), manifest.levels) != (tuple(run.space.shape), run.space.levels):
        raise ValueError(f"{source} is of data of shape {manifest.image} with {manifest.levels} levels, not of these.")
    located = checkpoint.locate_tensors(source, manifest)
    same_phases = _check_past(run.config, manifest, source)
    check_own(run.script_hashes, manifest, source)
    said = [f"goes on from {source}"]
    if run.world.rank == 0:  # the names are the same for all, and only rank 0 reports
        said += _check_model(run, manifest, located.keys(), source)
    initial = global_state(weights.slices.values())
    tensors = checkpoint.read_tensors(located, [name for name in located if name.split("/", 1)[-1] in initial])
    check_values(initial, tensors, source)
    for truncated in weights.slices.values():
        truncated.load_global_state(initial | tensors)
    weights.take_slots(tensors)
    progress.moments_of, progress.step = manifest.moments_of, manifest.step
    progress.learned = {part for part, end in enumerate(run.borders) if end <= manifest.started}
    run.world.pulse.step = progress.step
    if same_phases:
        progress.begun, progress.ended, progress.elapsed = manifest.begun, manifest.phases, manifest.elapsed
    else:
        progress.begun = manifest.step
        said.append(f"other phases than the checkpoint's: the first of them begins here, at step {manifest.step}")
    return said


def _check_model(run: Run, manifest: Manifest, names: Collection[str], source: Path) -> list[str]:
    """What the checkpoint's cut had and this one does not, and the reverse; a ValueError if the model is another."""
    expected = global_state(build(run.config.model, run.space, run.flow)[0].values())
    check_names(expected, names, source)
    if manifest.at == run.borders[:-1]:
        return []
    new = {owner_of(name) for name in expected if name not in names}
    left = {owner_of(name) for name in names if is_provisional(name)} - {owner_of(name) for name in expected}
    return [
        f"cut anew: borders at {run.borders[:-1]}, in the checkpoint at {manifest.at}",
        *(f"{name} starts afresh: the checkpoint has no border there" for name in sorted(new)),
        *(f"{name} is not carried over: no part has it any more" for name in sorted(left)),
    ]


def _check_past(config: Config, manifest: Manifest, source: Path) -> bool:
    """Whether the phases are the checkpoint's; a ValueError where another part of the past differs."""
    now, then = config.as_dict(), from_dict(manifest.config).as_dict()  # what it does not say is the default
    shape = {config.flow: set[str]()} if config.flow in FAMILIES else {}
    for name, free in (_PAST | shape).items():
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
    if run_of(source) == Path(config.run_dir).resolve():
        raise ValueError(
            f"The phases differ from those that {config.run_dir} has begun with. To begin other phases from its "
            "weights, give the new run a directory of its own with --run_dir DIR."
        )
    return False
