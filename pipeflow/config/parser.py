"""The command line and YAML files → `Config`."""

import dataclasses
import re
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from .config import Config
from .parse_errors import sentence
from .phases import PhaseConfig
from .plain_yaml import check_plain, settings_in


def make_parser() -> ArgumentParser:
    """The parser of `python -m pipeflow.train`; `--help` lists every setting."""
    parser = ArgumentParser(
        prog="pipeflow.train", exit_on_error=False, allow_abbrev=False, description="Train a Glow by parts."
    )
    parser.add_argument("--config", action="config", help="a YAML file of settings; what follows it overrides it")
    parser.add_argument(
        "--resume", metavar="auto | PATH", help="go on from the run's newest whole checkpoint, or from this one"
    )
    parser.add_class_arguments(Config)
    return parser


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Command line → settings.

    Args:
        arguments: dotted names and values, such as ["--glow.levels", "2"]; the process's own by default.

    Raises:
        ValueError: a sentence about what is wrong: an unknown name, a value of the wrong kind or out of range.
    """
    return parse_resume(arguments)[0]


def parse_resume(
    arguments: Sequence[str] | None = None, base: dict[str, Any] | None = None
) -> tuple[Config, str | None]:
    """Like `parse`, and what `--resume` says: "auto", a path, or None where it is not there.

    Args:
        arguments: dotted names and values; the process's own by default.
        base: settings that they override, as `Config.as_dict` makes them; the quickstart by default.
    """
    if base is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as stream:
            yaml.safe_dump(renamed(base), stream)
            stream.flush()
            return parse_resume(["--config", stream.name, *(sys.argv[1:] if arguments is None else arguments)])
    # torchrun takes "--run_dir" for the beginning of an option of its own; behind "--" it leaves words alone.
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if word != "--"]
    # Where lists are equally long, jsonargparse fills what a phase leaves out from the list that it replaces; here a
    # list is given whole.
    words = [part for word in words for part in (["--phases=[]", word] if re.match("--phases(=|$)", word) else [word])]
    words = [_current(word, before) for before, word in pairwise(["", *words])]
    check_plain(words, [member.name for member in dataclasses.fields(Config) if member.default is dataclasses.MISSING])
    parser = make_parser()
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise ValueError(sentence(str(error), _names(), _file(words))) from error
    values.pop("config", None)
    resume = values.pop("resume", None)
    return Config(**vars(values)), resume


def from_dict(values: dict[str, Any], words: Sequence[str] = ()) -> Config:
    """What `Config.as_dict` made, checked like a command line.

    Args:
        values: the settings.
        words: of a command line, which overrides them.

    Raises:
        ValueError: a sentence about what is wrong.
    """
    return parse_resume(words, values)[0]


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Settings under their names of today: up to version 0.1.0, run_dir was called run."""
    return {"run_dir" if name == "run" else name: value for name, value in values.items()}


def _current(word: str, before: str) -> str:
    """The name of a file of settings, or of one that says the same in the names of today; other words as they are."""
    file = word if before == "--config" else word.removeprefix("--config=") if word.startswith("--config=") else ""
    found = settings_in(Path(file)) if file else {}
    if "run" not in found:
        return word
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as stream:
        yaml.safe_dump(renamed(found), stream)
    return word.removesuffix(file) + stream.name


def _names(settings: type = Config, before: str = "") -> list[str]:
    """Dotted names of all settings; those of a phase are called phases.<name>."""
    names = []
    for member in dataclasses.fields(settings):
        inner = PhaseConfig if member.name == "phases" else member.type
        names.append(before + member.name)
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            names += _names(inner, f"{before}{member.name}.")
    return names


def _file(words: Sequence[str]) -> str | None:
    """The last --config among the words."""
    files = [after for word, after in pairwise(words) if word == "--config"]
    files += [word.split("=", 1)[1] for word in words if word.startswith("--config=")]
    return files[-1] if files else None
