"""Checks of settings: one mechanism for Python, the command line and files.

A plain dataclass takes any value: `PhaseConfig("simultanous")` would train whatever the last `else` stands for.
Pydantic refuses it, but reports every branch of a type at length; here the report becomes a sentence that names the
setting, what was given and what is allowed. Each package declares its own settings with `@settings` above a frozen
dataclass.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1, description="a whole number")]
AtLeast1 = Annotated[int, Field(ge=1, le=(1 << 31) - 1, description="a whole number of at least 1")]
Positive = Annotated[float, Field(gt=0, description="a positive number")]
AtLeast0 = Annotated[int, Field(ge=0, description="a whole number that is not negative")]
NotNegative = Annotated[float, Field(ge=0, description="a number that is not negative")]

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
_CALLS = ("unexpected_positional_argument", "multiple_argument_values")
T = TypeVar("T")


def settings(section: str = "") -> Callable[[type[T]], type[T]]:
    """Decorates a frozen dataclass, which then refuses values of other types with a ValueError of one sentence.

    Types are strict, but for 1 as a float: True is no whole number, and "4" is none either. `section` is the dotted
    name of these settings, such as "glow".
    """

    def decorate(plain: type[T]) -> type[T]:
        checked = dataclass(plain, frozen=True, config=ConfigDict(extra="forbid", strict=True))
        initialise = checked.__init__

        @wraps(initialise)
        def init(self: T, *values: Any, **named: Any) -> None:
            try:
                initialise(self, *values, **named)
            except ValidationError as error:
                raise ValueError(sentence(error, checked, section)) from None

        setattr(checked, "__init__", init)  # noqa: B010 - mypy refuses the assignment
        checked.__doc__ = plain.__doc__
        return cast(type[T], checked)

    return decorate


def sentence(error: ValidationError, kind: Any, section: str = "") -> str:
    """The first mistake in settings of the class `kind`, whose dotted name is `section`, as Pydantic has found it."""
    found = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))  # of a union, the branch meant
    known, name, phase = [member for member, _, _ in members(kind, section)], section, None
    path = list(found["loc"])
    while path and (dataclasses.is_dataclass(kind) or _item(kind)):
        step = path.pop(0)
        if inner := _item(kind):
            kind, phase = inner, int(step) + 1
            continue
        fields = dataclasses.fields(kind)
        if isinstance(step, int) and step < len(fields):  # a positional argument
            step = fields[step].name
        name = f"{name}.{step}".lstrip(".")
        kind = {field.name: field.type for field in fields}.get(str(step))
    where = f" in phase {phase}" if phase else ""
    match found["type"]:
        case "value_error":
            return f"{f'Phase {phase}: ' if phase else ''}{found['ctx']['error']}"
        case "unexpected_keyword_argument":
            return unknown(name, name, known)
        case "missing":
            return f"{name} is missing{where}; it must be {words(kind)}."
        case kind_of_error if kind_of_error in _CALLS:
            return f"{section or 'Config'} cannot be made of these arguments: {found['msg']} ({found['input']})."
        case "less_than_equal" if found["ctx"]["le"] > 1 << 30:  # a bound that its words leave out
            return f"{name} is {found['input']}{where}, which is too large."
    verb = "holds" if any(isinstance(step, int) for step in path) else "is"
    return f"{name} {verb} {found['input']}{where}; it must be {words(kind)}."


def unknown(given: str, name: str, known: Sequence[str]) -> str:
    """The sentence about a name that is not among those `known`; `given` is how it was written, such as "--sed"."""
    last = [one for one in known if one.split(".")[-1] == name.split(".")[-1]]  # as "levels" for "glow.levels"
    near = [*get_close_matches(name, known, 1, 0.75), *(one for one in known if one.startswith(name)), *last]
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"{given} is no setting.{meant} `python -m pipeflow.train --help` lists them all."


def members(kind: Any, section: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """The settings in a class, and in the classes of its settings: dotted name, field, class that the field is in."""
    for field in dataclasses.fields(kind):
        name = f"{section}.{field.name}".lstrip(".")
        yield name, field, kind
        inner = field.type if dataclasses.is_dataclass(field.type) else _item(field.type)
        if inner:
            yield from members(inner, name)


def words(kind: Any) -> str:
    """What a setting of this type may be: "a whole number of at least 1"."""
    if get_origin(kind) is Annotated:
        return str(kind.__metadata__[0].description)
    if get_origin(kind) is Literal:
        return ("one of " if len(get_args(kind)) > 1 else "") + ", ".join(get_args(kind))
    if get_origin(kind) is list:
        return "a list of " + re.sub(r"^a (group|.*number)", r"\1s", words(get_args(kind)[0]))
    if get_args(kind):
        return ", or ".join(words(branch) for branch in get_args(kind))
    return _WORDS.get(kind) or f"a group of names and values ({kind.__name__})"


def _item(kind: Any) -> Any:
    """The class of settings that a list holds, or None."""
    inner = get_args(kind)[0] if get_origin(kind) is list else None
    return inner if dataclasses.is_dataclass(inner) else None
