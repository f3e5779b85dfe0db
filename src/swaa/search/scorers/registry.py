"""Scorers by name, and as a user writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from swaa.errors import invalid
from swaa.named import add_named, find_named
from swaa.search.scorers.base import Scorer

S = TypeVar("S", bound=type[Scorer])

_scorers: dict[str, type[Scorer]] = {}


def register_scorer(scorer_class: S) -> S:
    """Class decorator: make a scorer known by its ``name`` to YAML and the command line.

    Raises:
        UserError: the class is no frozen dataclass, has no name, or another class has the name.
    """
    return add_named(_scorers, scorer_class, kind="scorer")


def scorer_names() -> tuple[str, ...]:
    """All known names, sorted."""
    return tuple(sorted(_scorers))


def get_scorer(name: str) -> type[Scorer]:
    """The scorer class of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    return find_named(_scorers, name, kind="scorer")


def parse_scorer(value: str | Mapping[str, object] | Scorer) -> Scorer:
    """The scorer that a user wrote: a name, ``{"name": ..., parameter: value, ...}``, or a scorer itself.

    Raises:
        UserError: the name is missing or unknown, or a parameter is unknown, missing or wrong.
    """
    if isinstance(value, Scorer):
        return value
    values: Mapping[str, object] = {"name": value} if isinstance(value, str) else value
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        mend = f"Write a name, or name: … and its parameters; known: {', '.join(scorer_names())}."
        raise invalid("scorer", accepted="the name of a scorer, or a mapping with its name", got=value, mend=mend)
    parameters = {key: item for key, item in values.items() if key != "name"}
    return get_scorer(str(values["name"])).from_dict(parameters)
