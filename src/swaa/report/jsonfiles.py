"""JSON files that a run wrote -> frozen dataclasses, checked field by field."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from swaa.errors import UserError, invalid

T = TypeVar("T")

_MEND = "Run the same `swaa run` again, which writes the file anew."


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        UserError: the file is no JSON, or holds no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: this file is no JSON ({error}). {_MEND}") from error
    return typing.cast("dict[str, Any]", _expect(dict, "an object", values, str(path)))


def read_lines(cls: type[T], path: Path) -> Iterator[T]:
    """One ``cls`` a line of a JSON Lines file, nothing where there is no file.

    A last line without its line end was torn by an interruption, or is being written, and is left out.

    Raises:
        UserError: another line cannot be read; it is named.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                values = json.loads(line)
            except ValueError as error:
                mend = "Remove the file and run the same `swaa run` again."
                raise UserError(f"{path}:{number}: this line is no JSON ({error}). {mend}") from error
            yield to_value(cls, values, f"{path}:{number}: ")


def to_value(cls: type[T], values: object, path: str) -> T:
    """``values``, plain data of JSON, as the dataclass ``cls``; ``path`` stands before a field's name in errors.

    A field that ``cls`` does not have is passed over: a later version of the same format may write more.

    Raises:
        UserError: a field is missing or of another type.
    """
    mapping = _expect(dict, "an object", values, path)
    hints = typing.get_type_hints(cls)
    dot = "" if path.endswith(": ") else "."
    given = {}
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        where = f"{path}{dot}{each.name}"
        if each.name in mapping:
            given[each.name] = _convert(hints[each.name], mapping[each.name], where)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: this field is missing. {_MEND}")
    return cls(**given)


def _convert(hint: Any, value: object, path: str) -> Any:
    """``value`` as the type ``hint``: one of the few kinds that the dataclasses of a run use."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return to_value(typing.cast("type[object]", hint), value, path)
    if origin is types.UnionType:  # X | None
        return None if value is None else _convert(args[0], value, path)
    if origin is tuple:  # tuple[X, ...]
        items = _expect(list, "a list", value, path)
        return tuple(_convert(args[0], item, f"{path}[{index}]") for index, item in enumerate(items))
    if origin is Mapping:
        return _expect(dict, "an object", value, path)
    if hint is float:
        return float(_expect((int, float), "a number", value, path))
    return _expect(hint, {int: "a whole number", str: "a string"}[hint], value, path)


def _expect(kind: Any, accepted: str, value: Any, path: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise invalid(path.removesuffix(": "), accepted=accepted, got=value, mend=_MEND)
    return value
