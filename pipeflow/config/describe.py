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
    """A dotted name (phases.<name> in a phase), what it may be, the default as YAML ("" if none), and its meaning."""

    name: str
    kind: str
    default: str
    meaning: str


def describe() -> list[Setting]:
    """Every setting; a group, such as "glow", stands before its own. Defaults are those of the quickstart."""
    rows, quickstart = [], Config().as_dict()
    for name, field, owner in members(Config):
        default: Any = field.default
        if "." in name and not name.startswith("phases."):
            default = quickstart
            for step in name.split("."):
                default = default[step]
        text = (
            ""
            if default is dataclasses.MISSING
            else yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()
        )
        rows.append(Setting(name, words(field.type), text, _meanings(owner)[field.name]))
    return rows


def help_text() -> str:
    """What `--help` prints."""
    lines = [
        "usage: python -m pipeflow.train [--config FILE] [--resume auto | PATH] [--NAME VALUE | --NAME=VALUE ...]\n",
        "--config FILE\n    a YAML file of settings; what follows it overrides it",
        "--resume auto | PATH\n    go on from the run's newest whole checkpoint, or from this one",
    ]
    for name, kind, default, meaning in describe():
        option = name.replace("phases.", "    each of the phases: ") if name.startswith("phases.") else f"--{name}"
        what = f"{meaning} ({kind}{f'; default: {default}' if default else ''})"
        lines.append(f"{option}\n{textwrap.indent(textwrap.fill(what, 110), '    ')}")
    return "\n".join(lines)


def _meanings(owner: Any) -> dict[str, str]:
    """Attribute → its meaning, from the section "Attributes" of a class's docstring."""
    _, _, text = inspect.cleandoc(owner.__doc__).partition("Attributes:\n")
    found = re.findall(r"^ {4}([\w, ]+): (.+(?:\n {8}.+)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for names, meaning in found for name in names.split(", ")}
