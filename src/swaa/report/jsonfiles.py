"""JSON files that a run wrote -> frozen dataclasses, checked field by field."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from swaa import jsonlines
from swaa.errors import UserError, invalid

T = TypeVar("T")

_MEND = "Run the same `swaa run` again, which writes the file anew."
_PLAIN = {int: "a whole number", str: "a string"}


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        UserError: the file is no JSON, or holds no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: this file is no JSON ({error}). {_MEND}") from error
    return typing.cast("dict[str, Any]", _expect(dict, "an object", values, str(path), _MEND))


def read_lines(cls: type[T], path: Path) -> Iterator[T]:
    """One ``cls`` a line of a JSON Lines file; :func:`swaa.jsonlines.read_lines` says what of torn lines.

    Raises:
        UserError: a line cannot be read; it is named, and its field.
    """
    mend = "Remove the file and run the same `swaa run` again."
    return jsonlines.read_lines(path, lambda line: to_value(cls, json.loads(line), ""), fault="is no JSON", mend=mend)


def to_value(cls: type[T], values: object, path: str, *, mend: str = _MEND) -> T:
    """``values``, plain data of JSON, as the dataclass ``cls``; ``path`` stands before a field's name in errors.

    A field that ``cls`` does not have is passed over: a later version of the same format may write more.

    Args:
        mend: what to do about a wrong field, as a sentence in the imperative.

    Raises:
        UserError: a field is missing or of another type.
    """
    mapping = _expect(dict, "an object", values, path, mend)
    dot = "" if not path or path.endswith(": ") else "."
    given = {}
    for name, hint, is_needed in _fields(typing.cast("Any", cls)):
        if name in mapping:
            given[name] = _convert(hint, mapping[name], f"{path}{dot}{name}", mend)
        elif is_needed:
            raise UserError(f"{path}{dot}{name}: this field is missing. {mend}")
    return cls(**given)


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name and type of each field, and whether it must be given; kept, as files have thousands of lines."""
    hints, nothing = typing.get_type_hints(cls), dataclasses.MISSING
    return tuple(
        (each.name, hints[each.name], each.default is nothing and each.default_factory is nothing)
        for each in dataclasses.fields(cls)
    )


def _convert(hint: Any, value: object, path: str, mend: str) -> Any:
    """``value`` as the type ``hint``: one of the few kinds that the dataclasses of a run use."""
    if hint in _PLAIN:
        return _expect(hint, _PLAIN[hint], value, path, mend)
    if hint is float:
        return float(_expect((int, float), "a number", value, path, mend))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return to_value(typing.cast("type[object]", hint), value, path, mend=mend)
    if origin is types.UnionType:  # X | None
        return None if value is None else _convert(args[0], value, path, mend)
    if origin is tuple:  # tuple[X, ...]
        items = _expect(list, "a list", value, path, mend)
        return tuple(_convert(args[0], item, f"{path}[{index}]", mend) for index, item in enumerate(items))
    mapping = _expect(dict, "an object", value, path, mend)  # Mapping[str, X]
    for name, item in mapping.items():
        if args[1] is not object:
            _convert(args[1], item, f"{path}.{name}", mend)
    return mapping


def _expect(kind: Any, accepted: str, value: Any, path: str, mend: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise invalid(path.removesuffix(": "), accepted=accepted, got=value, mend=mend)
    return value
