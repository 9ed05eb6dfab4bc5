"""The command line, files and the settings of checkpoints → `Config`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from ..settings import members, sentence, unknown
from .config import Config
from .describe import help_text
from .yaml_text import as_json, read_file, read_text

_KINDS = {name: field.type for name, field, _ in members(Config)}
_FORMER = {"run": "run_dir"}  # names in files that earlier versions have written → names of today


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Command line → settings.

    Args:
        arguments: dotted names and values, such as ["--glow.levels", "2"]; the process's own by default.

    Raises:
        ValueError: a sentence about what is wrong: an unknown name, a value of the wrong kind or out of range.
    """
    return parse_resume(arguments)[0]


def parse_resume(arguments: Sequence[str] | None = None) -> tuple[Config, str | None]:
    """Like `parse`, and what `--resume` says: "auto", a path, or None where it is not there."""
    given, resume = read_words(sys.argv[1:] if arguments is None else arguments)
    return from_dict(given), resume


def from_dict(*layers: dict[str, Any]) -> Config:
    """Plain values, such as `Config.as_dict` makes → settings, checked.

    Args:
        layers: names and values, each of which override those before them; the quickstart's are the first of all.

    Raises:
        ValueError: a sentence about what is wrong.
    """
    try:
        return TypeAdapter(Config).validate_json(as_json(layered(Config().as_dict(), *layers)))
    except ValidationError as error:
        raise ValueError(sentence(error, Config)) from error


def layered(*layers: dict[str, Any]) -> dict[str, Any]:
    """Puts names and values over those before them, group by group; a list is replaced as one."""
    values: dict[str, Any] = {}
    for layer in layers:
        values = _over(values, {_FORMER.get(name, name): value for name, value in layer.items()})
    return values


def _over(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    both = [name for name in others if isinstance(values.get(name), dict) and isinstance(others[name], dict)]
    return values | others | {name: _over(values[name], others[name]) for name in both}


def read_words(words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Command line → the names and values that it gives, and what `--resume` says.

    Raises:
        SystemExit: after `--help` has printed all settings.
        ValueError: a sentence about an unknown name, or about a file that cannot be read.
    """
    if "--help" in words or "-h" in words:
        print(help_text())
        raise SystemExit(0)
    given: dict[str, Any] = {}
    resume = None
    for name, text in _options(words):
        if name == "config":
            given = layered(given, read_file(Path(text)))
        elif name == "resume":
            resume = text
        else:
            value = _value(_KINDS[name], text)
            for part in reversed(name.split(".")):
                value = {part: value}
            given = layered(given, value)
    return given, resume


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of `--name text` and `--name=text`; a lone `--`, which some launchers need, says nothing."""
    left = iter(word for word in words if word != "--")
    names = [name for name in _KINDS if not name.startswith("phases.")]
    for word in left:
        option, equals, text = word.partition("=")
        name = option.removeprefix("--")
        if not word.startswith("--") or name not in ("config", "resume", *names):
            raise ValueError(unknown(option, name, names))
        if not equals:
            text = next(left, "--")
            if text.startswith("--"):
                raise ValueError(f"{option} has no value; write {option} VALUE.")
        yield name, text


def _value(kind: Any, text: str) -> Any:
    """Text of the command line → a value; where a text is wanted, as it stands."""
    if str in (kind, *get_args(kind)) and text != "null":
        return text
    try:
        return read_text(text)
    except yaml.YAMLError:
        return text
