"""An error of the parser → a sentence for people: what was given, what is allowed, what was probably meant.

jsonargparse names the Python class that a value failed to become, and repeats itself; whoever wrote `--sed` wants to
read "seed".
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word", "list": "a list"}
_NO_SETTING = (
    r"unrecognized arguments: (?P<word>[^\s=]+)"
    r"|Group '(?P<group>[\w.]+)' does not accept option '(?P<member>[\w.]+)'"
    r"|Option '(?P<option>[\w.]+)' is not accepted"
)


def sentence(message: str, names: Sequence[str], file: str | None) -> str:
    """Says what the parser found wrong.

    Args:
        message: of jsonargparse.
        names: the dotted names of all settings.
        file: the file that was to be read, if there was one.
    """
    text = " ".join(message.split())
    place = re.findall(r'Parser key "([^"]+)"', text)
    if found := re.search(_NO_SETTING, text):
        if found["word"]:
            return _unknown(found["word"], found["word"].lstrip("-"), names)
        name = ".".join([*place, *filter(None, (found["group"], found["member"] or found["option"]))])
        return _unknown(name, name, names)
    if found := re.search(r"arguments are required: (\S+)", text):
        return f"{'.'.join([*place, found[1]])} is missing; every one of the {'.'.join(place)} needs it."
    if found := re.search(r"argument (\S+): expected one argument", text):
        return f"{found[1]} has no value; write {found[1]} VALUE."
    if place == ["config"] and "does not exist" in text:
        return f"--config {file} is no file that can be read; give the name of a YAML file of settings."
    if found := re.search(r"(?:Got|Given) value: (.*)$", text):
        return f"{'.'.join(place)} is {found[1]}; it must be {_allowed(text)}."
    if file and re.search("config", text):
        return f"{file} is no YAML file of settings ({text}); it must hold names and values, such as `seed: 1`."
    return text


def _unknown(given: str, name: str, names: Sequence[str]) -> str:
    last = [known for known in names if known.split(".")[-1] == name.split(".")[-1]]  # as "levels" for "glow.levels"
    near = [*get_close_matches(name, names, 1, 0.75), *(known for known in names if known.startswith(name)), *last]
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"{given} is no setting.{meant} `python -m pipeflow.train --help` lists them all."


def _allowed(text: str) -> str:
    """What a value may be, from the types in a message."""
    types = re.split(r"Errors:|G(?:ot|iven) value", text)[0]
    if found := re.search(r"Literal\[([^\]]+)\]", types):
        return f"one of {found[1].replace(chr(39), '')}"
    kinds = [_KINDS[kind] for kind in re.findall(r"\b(?:int|float|bool|str|list)\b", types.replace("list[", "list "))]
    return " or ".join(dict.fromkeys(kinds)) or "of another kind"
