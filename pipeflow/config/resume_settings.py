"""Settings of a resumed run: what the command line leaves open is filled in from the checkpoint."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..model import CutConfig
from ..storage import checkpoint
from .config import Config
from .parser import from_dict, read_words
from .yaml_text import read_file

Resume = Path | Literal["auto"] | None


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
    given, wish = read_words(arguments)
    config = _filled((base or Config()).as_dict(), given)
    run = Path(config.run_dir)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and (wish is None or checkpoint.steps_saved(run)):
        wish = "auto"
    if wish is None:
        return config, None
    source, run = _readable(run) if wish == "auto" else _named(Path(wish), Path((base or Config()).run_dir))
    if source:
        then, told = checkpoint.read_manifest(source).config, source
    elif (run / "config.yaml").is_file():  # interrupted before its first checkpoint
        then, told = read_file(run / "config.yaml"), run / "config.yaml"
    else:
        return config, "auto"
    try:
        config = _filled(then, {"run_dir": str(run)} | given)
    except ValueError as error:
        raise ValueError(f"With the settings of {told}: {error}") from error
    at = checkpoint.read_manifest(source).at if source else then["cut"]["at"] or []
    if config.cut.scheme == "balanced" and len(at) == config.cut.parts - 1:
        cut = dataclasses.replace(config.cut, scheme="explicit", at=at)  # measured once
        config = dataclasses.replace(config, cut=cut)
    return config, "auto" if wish == "auto" else source


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


def _filled(settings: dict[str, Any], given: dict[str, Any]) -> Config:
    """`given` over other settings; a cut that is given takes nothing but the provisional prior from the other one."""
    cut = given.get("cut")
    if isinstance(cut, dict) and not {"scheme", "parts", "at"}.isdisjoint(cut):
        unset = {"cut": dataclasses.asdict(CutConfig())}
        del unset["cut"]["provisional_prior"]
        return from_dict(settings, unset, given)
    return from_dict(settings, given)
