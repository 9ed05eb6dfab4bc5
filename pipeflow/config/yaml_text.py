"""YAML text → plain values, and back.

PyYAML reads 1e-3 as a word, takes the second of two settings of one name without a sign, and repeats what an anchor
names as often as it is named. Tags, which name code, are refused by its safe loader.
"""

import json
import re
from collections import Counter
from collections.abc import Hashable
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

_LONGEST = 1 << 18  # bytes of a file of settings
_MOST = 100_000  # pieces of the settings of a run as JSON; some hundred are usual


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise yaml.YAMLError(f"{twice[0]} is there twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts words in quotes that `_Loader` would read as numbers."""


for _kind in (_Loader, _Dumper):
    _number = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _number, list("-+.0123456789"))


def read_text(text: str) -> Any:
    """Plain values; a yaml.YAMLError where it is no YAML, or holds tags."""
    try:
        return yaml.load(text, _Loader)
    except (RecursionError, ValueError) as error:  # lists in lists without end; a date such as 2024-99-99
        raise yaml.YAMLError(str(error)) from error


def read_file(file: Path) -> dict[str, Any]:
    """The names and values in a file of settings; a ValueError where there are none."""
    try:
        with file.open("rb") as stream:  # a pipe will do, as in --config <(…)
            content = stream.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise yaml.YAMLError(f"it has more than {_LONGEST} bytes")
        found = read_text(content.decode())
    except OSError as error:
        raise ValueError(f"{file} is no file that can be read; --config takes the name of a YAML file.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
    if not isinstance(found, dict):
        what = f"{file} is no YAML file of settings ({found})"
        raise ValueError(f"{what}; it must hold names and values, such as `seed: 1`.")
    return found


def as_text(values: dict[str, Any]) -> str:
    """As a file that `read_file` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def as_json(values: dict[str, Any]) -> str:
    """As JSON, a date as a word; a ValueError where anchors repeat each other until nothing can hold them."""
    try:
        pieces = list(islice(json.JSONEncoder(default=str).iterencode(values), _MOST))
    except (TypeError, ValueError, RecursionError) as error:  # a date for a name; a list that holds itself
        raise ValueError(f"The settings are no plain names and values ({error}).") from error
    if len(pieces) == _MOST:
        raise ValueError("The settings are too long to be those of a run; leave out anchors that repeat others.")
    return "".join(pieces)
