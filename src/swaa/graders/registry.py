"""Graders by name, and as a user writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from swaa.errors import invalid
from swaa.graders.base import Grade, Grader, Question
from swaa.named import add_named, find_named

G = TypeVar("G", bound=type[Grader])

_graders: dict[str, type[Grader]] = {}


def register_grader(grader_class: G) -> G:
    """Class decorator: make a grader known by its ``name`` to YAML and the command line.

    Raises:
        UserError: the class is no frozen dataclass, has no name, or another class has the name.
    """
    return add_named(_graders, grader_class, kind="grader")


def get_grader(name: str) -> type[Grader]:
    """The grader class of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    return find_named(_graders, name, kind="grader")


def grader_names() -> tuple[str, ...]:
    """All known names, sorted."""
    return tuple(sorted(_graders))


def parse_grader(value: str | Mapping[str, object] | Grader) -> Grader:
    """The grader that a user wrote: a name, ``{"name": ..., parameter: value, ...}``, or a grader itself.

    Raises:
        UserError: the name is missing or unknown, or a parameter is unknown, missing or wrong.
    """
    if isinstance(value, Grader):
        return value
    values: Mapping[str, object] = {"name": value} if isinstance(value, str) else value
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        mend = f"Write a name, or name: … and its parameters; known: {', '.join(grader_names())}."
        raise invalid("grader", accepted="the name of a grader, or a mapping with its name", got=value, mend=mend)
    parameters = {key: item for key, item in values.items() if key != "name"}
    return get_grader(str(values["name"])).from_dict(parameters)


def grade(grader: str | Grader, text: str, references: Sequence[str]) -> Grade:
    """The grade of ``text`` by a grader or by the one of that name, where there is no more to a question.

    Raises:
        UserError: there is no such grader, it needs parameters, or the references are none or hold a blank one.
    """
    return parse_grader(grader).grade(text, Question("", references))  # type: ignore[arg-type]  # Question checks
