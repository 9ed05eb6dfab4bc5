"""Settings of a resumed run: what the command line leaves open is filled in from the checkpoint."""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml

from ..storage import Manifest, RunDirectory, checkpoint, run_of
from .config import Config
from .parser import parse_resume, renamed
from .plain_yaml import settings_in

Resume = Path | Literal["auto"] | None


def settle(
    arguments: Sequence[str], base: Config | None = None, before_reading: Callable[[Path], Any] = lambda run: None
) -> tuple[Config, Resume]:
    """Command line → settings, and where to go on from.

    With `--resume`, what the command line leaves open is the checkpoint's; and a process that torchrun has restarted,
    which has the same command line as before, goes on with its run as if it said `--resume auto`.

    Args:
        arguments: dotted names and values.
        base: the settings that they override; the quickstart by default.
        before_reading: called with the run directory before anything in it is read.

    Returns:
        The settings; and "auto", a checkpoint, another run whose newest checkpoint is meant, or None.

    Raises:
        ValueError: settings that are wrong, or a path that is no checkpoint.
    """
    words = ["--run_dir=", *arguments]  # it stays empty where nobody names a directory
    config, wish = parse_resume(words) if base is None else _filled(words, base.as_dict())
    origin = None if wish in (None, "auto") else Path(wish)
    run = Path(config.run_dir or (origin and _run_of(origin)) or (base or Config()).run_dir)
    before_reading(run)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and (wish is None or checkpoint.steps_saved(run)):
        wish, origin = "auto", None
    if wish is None:
        return dataclasses.replace(config, run_dir=str(run)), None
    settings = RunDirectory(run).settings
    source, manifest = _readable(run) if origin is None else _named(origin)
    if manifest:
        then, at, told = manifest.config, manifest.at, source
    elif settings.is_file():  # interrupted before its first checkpoint
        then = yaml.safe_load(settings.read_text())
        at, told = then["cut"]["at"] or [], settings
    else:
        return dataclasses.replace(config, run_dir=str(run)), "auto"
    try:
        config, _ = _filled(arguments, renamed(then) | {"run_dir": str(run)})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"With the settings of {told}: {error}") from error
    if config.cut.scheme == "balanced" and len(at) == config.cut.parts - 1:
        cut = dataclasses.replace(config.cut, scheme="explicit", at=at)  # measured once
        config = dataclasses.replace(config, cut=cut)
    return config, origin or "auto"


def _run_of(origin: Path) -> Path | None:
    """The run that a path names, or that the checkpoint it names lies in."""
    if (origin / "checkpoints").is_dir():
        return origin
    return run_of(origin) if origin.resolve().parent.name == "checkpoints" else None


def _readable(run: Path) -> tuple[Path, Manifest | None]:
    """The newest checkpoint whose settings can be read; whether it is damaged, `find` will see."""
    for step in reversed(checkpoint.steps_saved(run)):
        try:
            directory = RunDirectory(run).checkpoint(step)
            return directory, checkpoint.read_manifest(directory)
        except ValueError:
            continue
    return run, None


def _named(origin: Path) -> tuple[Path, Manifest]:
    """A checkpoint, or the newest of a run."""
    source, manifest = _readable(origin)
    if manifest is None and (origin / "checkpoints").is_dir():
        raise ValueError(f"{origin} has no checkpoint that can be read.")
    return source, manifest or checkpoint.read_manifest(origin)


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
