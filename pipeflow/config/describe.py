"""All settings in words, from the dataclasses and their docstrings: for `--help`, and for docs/settings.md."""

import dataclasses
import inspect
import re
import textwrap
from typing import Any, NamedTuple

import yaml

from ..settings import members, words
from .config import Config


class Setting(NamedTuple):
    """A row of the table of settings.

    Attributes:
        name: dotted; those of a phase are called phases.<name>.
        kind: what it may be, in words.
        default: as YAML; empty for a group of settings, and where a value must be given.
        meaning: from the docstring.
    """

    name: str
    kind: str
    default: str
    meaning: str


def describe() -> list[Setting]:
    """Every setting; a group, such as "glow", stands before its own."""
    rows = []
    for name, field, owner in members(Config):
        group, _, member = name.rpartition(".")
        default = field.default
        if group and group != "phases":  # of the quickstart, not of the class alone
            default = getattr(getattr(Config(), group), member)
        grouped = default is dataclasses.MISSING
        rows.append(Setting(name, words(field.type), "" if grouped else _yaml(default), _meanings(owner)[field.name]))
    return rows


def help_text() -> str:
    """What `--help` prints."""
    lines = [
        "usage: python -m pipeflow.train [--config FILE] [--resume auto | PATH] [--NAME VALUE | --NAME=VALUE ...]",
        "\nTrain a normalizing flow by parts.\n",
        "--config FILE\n    a YAML file of settings; what follows it overrides it",
        "--resume auto | PATH\n    go on from the run's newest whole checkpoint, or from this one",
    ]
    for name, kind, default, meaning in describe():
        option = f"  of a phase: {name.removeprefix('phases.')}" if name.startswith("phases.") else f"--{name}"
        what = f"{meaning} ({kind}{f'; default: {default}' if default else ''})"
        lines.append(f"{option}\n{textwrap.fill(what, 110, initial_indent='    ', subsequent_indent='    ')}")
    return "\n".join(lines)


def _meanings(owner: Any) -> dict[str, str]:
    """Attribute → its meaning, from the section "Attributes" of a class's docstring."""
    _, _, text = inspect.cleandoc(owner.__doc__).partition("Attributes:\n")
    found = re.findall(r"^ {4}([\w, ]+): (.+(?:\n {8}.+)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for names, meaning in found for name in names.split(", ")}


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
