"""Settings are data: a gate before a parser that can do more.

jsonargparse takes `class_path: some.module.Class`, or a bare dotted name, for a class to be imported, and importing
runs code. Settings also come out of checkpoints that others made, so nothing of the kind reaches it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml


def check_plain(words: Sequence[str], groups: Sequence[str]) -> None:
    """Refuses, on a command line and in the files that it names, groups of settings that are not names and values.

    Args:
        words: of the command line.
        groups: names of the settings that are groups, or lists of groups.

    Raises:
        ValueError: with the setting's name.
    """
    for name, text in _options(words):
        if name == "config":
            for setting, value in settings_in(Path(text)).items():
                if setting in groups:
                    _check(setting, value)
        elif name in groups:
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError:
                value = text
            _check(name, value)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of `--name value`, `--name=value` and `--name+ value`."""
    for word, after in pairwise([*words, ""]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name.rstrip("+"), value if equals else after


def settings_in(file: Path) -> dict[Any, Any]:
    """The settings in a file; what is wrong with the file itself, the parser says."""
    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _check(name: str, value: Any) -> None:
    for group in value if isinstance(value, list) else [value]:
        if not isinstance(group, dict) or not {"class_path", "init_args", "dict_kwargs"}.isdisjoint(group):
            kind = "a list, each of which holds" if name == "phases" else "a group of"
            raise ValueError(f"{name} is {value}; it must be {kind} names and values.")
