"""Going on from a checkpoint: exactly, in another cut, in other processes, or with other phases.

What a run has done cannot change: model, data, seed and the phases that have begun are the checkpoint's. How it is
spread may: parts are cut anew by global name, and what a new cut has no place for is said, never silently dropped.
"""

from pathlib import Path

from ..config import Config, Resume
from ..model import build, global_state
from ..storage import Manifest, check_own, check_tensors, checkpoint, is_provisional, owner_of
from .state import State

# Settings of a run's past, and those members of them that may differ all the same.
_PAST: dict[str, set[str]] = {"seed": set(), "flow": set(), "glow": set(), "data": {"root", "on_corrupt"}}


def find(config: Config, resume: Resume) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is to be said about it.

    Raises:
        ValueError: the checkpoints of the run are damaged, all of them; or the run goes on behind this one.
    """
    run = Path(config.run_dir)
    if resume is None:
        return None, []
    if resume != "auto":
        if checkpoint.run_of(resume) == run.resolve():
            behind = [step for step in checkpoint.steps_saved(run) if step > checkpoint.read_manifest(resume).step]
            if behind:
                raise ValueError(
                    f"{run} goes on to step {behind[-1]}, behind {resume.name}. Give the branch that begins here a "
                    "directory of its own with --run_dir DIR."
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
    same_phases = _check_past(state.run.config, manifest, source)
    check_own(state.run.script_hashes, manifest, source)
    expected = global_state(build(state.run.config.model, state.run.space, state.run.flow)[0].values())
    check_tensors(expected, tensors, source)
    said = [f"goes on from {source}"]
    if manifest.at != state.run.borders[:-1]:
        said.append(f"cut anew: borders at {state.run.borders[:-1]}, in the checkpoint at {manifest.at}")
        new = {owner_of(name) for name in expected.keys() - tensors.keys()}
        left = {owner_of(name) for name in tensors if is_provisional(name)} - {owner_of(name) for name in expected}
        said += [f"{name} starts afresh: the checkpoint has no border there" for name in sorted(new)]
        said += [f"{name} is not carried over: no part has it any more" for name in sorted(left)]
    for part in state.run.world.mine:
        state.weights.slices[part].load_global_state(expected | tensors)
    mine = {name for part in state.run.world.mine for name in state.weights.slices[part].global_state()}
    state.weights.take_slots({name: tensor for name, tensor in tensors.items() if name.split("/", 1)[-1] in mine})
    state.progress.moments_of, state.progress.step = manifest.moments_of, manifest.step
    state.run.world.pulse.step = state.progress.step
    state.progress.learned = {part for part, end in enumerate(state.run.borders) if end <= manifest.started}
    if same_phases:
        state.progress.begun, state.progress.ended, state.progress.elapsed = (
            manifest.begun,
            manifest.phases,
            manifest.elapsed,
        )
    else:
        state.progress.begun = manifest.step
        said.append(f"other phases than the checkpoint's: the first of them begins here, at step {manifest.step}")
    return said


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
    if checkpoint.run_of(source) == Path(config.run_dir).resolve():
        raise ValueError(
            f"The phases differ from those that {config.run_dir} has begun with. To begin other phases from its "
            "weights, give the new run a directory of its own with --run_dir DIR."
        )
    return False
