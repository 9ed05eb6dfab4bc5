"""Settings of a resumed run: what the command line leaves open is filled in from the checkpoint."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..model import CutConfig
from ..storage import Manifest, RunDirectory, checkpoint, is_later_life, run_of
from .config import Config
from .parser import from_dict, read_words
from .yaml_text import read_file

Resume = Path | Literal["auto"] | None


def settle(
    arguments: Sequence[str] | None,
    base: Config | None = None,
    before_reading: Callable[[Path], Any] = lambda run: None,
) -> tuple[Config, Resume]:
    """Command line → settings, and where to go on from.

    With `--resume`, what the command line leaves open is the checkpoint's; and a process that was restarted, which has
    the same command line as before, goes on with the run of its launch as if it said `--resume auto`.

    Args:
        arguments: dotted names and values; the process's own by default.
        base: the settings that they override; the quickstart by default.
        before_reading: called with the run directory before anything in it is read.

    Returns:
        The settings; and "auto", a checkpoint, another run whose newest checkpoint is meant, or None.

    Raises:
        ValueError: settings that are wrong, or a path that is no checkpoint.
    """
    given, wish = read_words(sys.argv[1:] if arguments is None else arguments)
    afresh = partial(_filled, (base or Config()).as_dict(), given)
    if wish is None:
        afresh()  # what is wrong is said before anything is read
    origin = None if wish in (None, "auto") else Path(wish)
    run = Path(str(given.get("run_dir") or (origin and _run_of(origin)) or (base or Config()).run_dir))
    before_reading(run)
    if is_later_life(run) and (wish is None or checkpoint.steps_saved(run)):
        wish, origin = "auto", None
    if wish is None:
        return afresh(), None
    source, manifest = _named(origin) if origin else _readable(run)
    if manifest is None and not (source := RunDirectory(run).settings).is_file():
        return afresh(), "auto"
    then = manifest.config if manifest else read_file(source)  # interrupted before its first checkpoint
    try:
        at = manifest.at if manifest else from_dict(then).cut.at or []
        config = _filled(then, {"run_dir": str(run)} | given)
    except ValueError as error:
        raise ValueError(f"With the settings of {source}: {error}") from error
    if config.cut.scheme == "balanced" and len(at) == config.cut.parts - 1:
        cut = dataclasses.replace(config.cut, scheme="explicit", at=at)  # measured once
        config = dataclasses.replace(config, cut=cut)
    return with_recorded_micro_batches(config, then), origin or "auto"


def with_recorded_micro_batches(config: Config, recorded: dict[str, Any]) -> Config:
    """The settings, where they leave the number of micro-batches open with the one that was chosen for a run before."""
    count = recorded.get("parallel", {}).get("micro_batches")
    if config.parallel.micro_batches != "auto" or not isinstance(count, int):
        return config
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, micro_batches=count))


def settled_restarts(arguments: Sequence[str] | None, base: Config | None = None) -> int:
    """`parallel.restarts` of what `settle` returns; 0 where something is wrong, which `settle` says later."""
    try:
        return settle(arguments, base)[0].parallel.restarts
    except (ValueError, OSError):
        return 0


def _run_of(origin: Path) -> Path | None:
    """The run that a path names, or that the checkpoint it names lies in."""
    if (origin / "checkpoints").is_dir():
        return origin
    return run_of(origin) if origin.resolve().parent.name == "checkpoints" else None


def _readable(run: Path) -> tuple[Path, Manifest | None]:
    """The newest checkpoint whose settings can be read; whether it is damaged, `find` will see."""
    directory, _ = checkpoint.newest(run, checkpoint.read_manifest)
    return (directory, checkpoint.read_manifest(directory)) if directory else (run, None)


def _named(origin: Path) -> tuple[Path, Manifest]:
    """A checkpoint, or the newest of a run."""
    source, manifest = _readable(origin)
    if manifest is None and (origin / "checkpoints").is_dir():
        raise ValueError(f"{origin} has no checkpoint that can be read.")
    return source, manifest or checkpoint.read_manifest(origin)


def _filled(settings: dict[str, Any], given: dict[str, Any]) -> Config:
    """`given` over other settings; a cut that is given takes only the kind of provisional prior from the other one."""
    cut = given.get("cut")
    if isinstance(cut, dict) and not {"scheme", "parts", "at"}.isdisjoint(cut):
        unset = {"cut": dataclasses.asdict(CutConfig())}
        del unset["cut"]["provisional_prior"], unset["cut"]["head"]
        return from_dict(settings, unset, given)
    return from_dict(settings, given)
