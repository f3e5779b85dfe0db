"""Checks on values that a user gives, and building a dataclass from a mapping that a user wrote.

A frozen dataclass checks its own fields with the functions here and names them with their owner (``Decoding.top_p``).
:func:`build` makes such a dataclass from a mapping and renames the mistake by the mapping's place in the file
(``recipes[2].decoding.top_p``), so that each rule is written once and told in both ways.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from swaa.errors import UserError, invalid, unknown

T = TypeVar("T")


def check_whole(field: str, value: object, *, minimum: int) -> int:
    """``value`` if it is an int of at least ``minimum``; True and 8.0 are no ints here."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise invalid(
            field,
            accepted=f"an int >= {minimum}",
            got=value,
            mend=f"Set it to {minimum} or more, without quotes.",
        )
    return value


def check_number(field: str, value: object, *, low: float, high: float, open_low: bool = False) -> float:
    """``value`` as a float if it lies in ``[low, high]``, or in ``(low, high]`` with ``open_low``."""
    accepted = f"a number in {'(' if open_low else '['}{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(field, accepted=accepted, got=value, mend="Write a number without quotes.")
    if not low <= value <= high or (open_low and value == low):
        raise invalid(field, accepted=accepted, got=value, mend="Choose a value inside this range.")
    return float(value)


def check_text(field: str, value: object) -> str:
    """``value`` if it is a string that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise invalid(field, accepted="a non-empty string", got=value, mend="Write it as text, in quotes.")
    return value


def check_choice(field: str, value: object, options: Collection[str]) -> str:
    """``value`` if it is one of ``options``; otherwise an error that suggests the nearest."""
    if not isinstance(value, str) or value not in options:
        raise UserError(f"{field}: {unknown('value', value, options)}")
    return value


def check_items(field: str, value: object, *, of: str, mend: str) -> Sequence[object]:
    """``value`` if it is a list or tuple with at least one item and no item twice; ``of`` says what the items are."""
    if not isinstance(value, list | tuple) or not value:
        raise invalid(field, accepted=f"a list of at least one {of}", got=value, mend=mend)
    for index, item in enumerate(value):
        if item in value[:index]:
            raise invalid(field, accepted=f"each {of} once", got=item, mend="Remove the second one.")
    return value


def check_mapping(field: str, value: object) -> Mapping[str, object]:
    """``value`` if it is a mapping whose keys are strings."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise invalid(field, accepted="a mapping of fields", got=value, mend="Write it as 'key: value' lines.")
    return value


def build(cls: type[T], values: object, path: str) -> T:
    """``cls(**values)`` for a dataclass ``cls``; every mistake is named by its dotted ``path`` in the file.

    Raises:
        UserError: ``values`` is no mapping, holds a key that ``cls`` does not know (with a suggestion), lacks one that
            it needs, or holds a value that it refuses.
    """
    mapping = check_mapping(path, values)
    fields = [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    check_keys(mapping, [field.name for field in fields], path)
    for field in fields:
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in mapping and not optional:
            raise UserError(f"{at(path, field.name)}: this field is missing. Add it; it has no default.")
    with within(path, owner=cls.__name__):
        return cls(**mapping)


def check_keys(mapping: Mapping[str, object], known: Collection[str], path: str) -> None:
    """Refuse a key that is not among the ``known`` ones, naming it by its dotted path, with a suggestion."""
    for key in mapping:
        if key not in known:
            raise unknown("field", at(path, key), [at(path, name) for name in known])


@contextlib.contextmanager
def within(path: str, owner: str = "") -> Iterator[None]:
    """Name mistakes made inside by ``path``; a field that was named by its ``owner`` is named by ``path`` instead."""
    try:
        yield
    except UserError as error:
        message, prefix = str(error), f"{owner}."
        if owner and message.startswith(prefix):
            raise UserError(at(path, message.removeprefix(prefix))) from error
        raise UserError(f"{path}: {message}" if path else message) from error


def at(path: str, name: str) -> str:
    """The dotted path of the field ``name`` inside ``path``."""
    return f"{path}.{name}" if path else name
