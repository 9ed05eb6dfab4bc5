"""The command line, files and the settings of checkpoints → `Config`."""

from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from ..settings import members, sentence, unknown
from .config import Config
from .describe import help_text
from .yaml_text import as_json, read_file, read_text

_TYPES = {name: field.type for name, field, _ in members(Config) if not name.startswith("phases.")}
_FORMER = {"run": "run_dir"}  # names in files that earlier versions have written → names of today


def parse_resume(arguments: Sequence[str]) -> tuple[Config, str | None]:
    """Command line, such as ["--glow.levels", "2"] → settings, and what `--resume` says: "auto", a path, or None.

    A ValueError of one sentence where it is wrong.
    """
    given, resume = read_words(arguments)
    return from_dict(given), resume


def from_dict(*layers: dict[str, Any]) -> Config:
    """Plain values, such as `Config.as_dict` makes → settings, checked.

    Args:
        layers: names and values, each of which override those before them; the quickstart's are the first of all.

    Raises:
        ValueError: a sentence about what is wrong.
    """
    try:
        return TypeAdapter(Config).validate_json(as_json(reduce(_over, layers, Config().as_dict())))
    except ValidationError as error:
        raise ValueError(sentence(error, Config)) from error


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
        if name == "resume":
            resume = text
        elif name == "config":
            given = _over(given, read_file(Path(text)))
        else:
            given = _over(given, reduce(lambda value, part: {part: value}, name.split(".")[::-1], _value(name, text)))
    return given, resume


def _over(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Names and values with `others` in their place; groups are merged, a list is replaced."""
    for name, value in others.items():
        now = _FORMER.get(name, name)
        old = values.get(now)
        values = values | {now: _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value}
    return values


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of `--name text` and `--name=text`; a lone `--`, which torchrun once needed, says nothing."""
    left = iter(word for word in words if word != "--")
    for word in left:
        option, equals, text = word.partition("=")
        name = option.removeprefix("--")
        if name == option or name not in ("config", "resume", *_TYPES):
            raise ValueError(unknown(option, name, list(_TYPES)))
        text = text if equals else next(left, "--")
        if text.startswith("--") and not equals:
            raise ValueError(f"{option} has no value; write {option} VALUE.")
        yield name, text


def _value(name: str, text: str) -> Any:
    """Text of the command line → a value; where the setting is a text, as it stands."""
    if str in (_TYPES[name], *get_args(_TYPES[name])) and text != "null":
        return text
    try:
        return read_text(text)
    except yaml.YAMLError:
        return text
