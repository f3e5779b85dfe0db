"""Reading the fields of a line of a data file; what is wrong is named by its field, and shortened."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence

from swaa.errors import UserError

_MOST_SAID = 12  # names of fields in a message


def refused(name: str, accepted: str, value: object, mend: str) -> UserError:
    """As :func:`swaa.errors.invalid`, for a value that may be as long as a book."""
    return UserError(f"{name}: expected {accepted}, got {short(value)}. {mend}")


def short(value: object) -> str:
    """The beginning of a value that may be very long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_text(name: str, value: object) -> str:
    """``value`` if it is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise refused(name, "a string", value, "Write it as text, in quotes.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        mend = "Remove the half of a surrogate pair."
        raise UserError(f"{name}: expected text that UTF-8 can hold ({error.reason}). {mend}") from error
    return value


def as_full_text(name: str, value: object) -> str:
    """``value`` if it is a string that is not blank."""
    if not as_text(name, value).strip():
        raise refused(name, "a string that is not blank", value, "Write something there, or drop the line.")
    return str(value)


def as_words(name: str, value: object) -> str:
    """A string that is not blank, or a number as text: ``2022`` is ``"2022"``, as data sets write their answers."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise refused(name, "a string or a number", value, "Write it as text, in quotes.")
    return as_full_text(name, value)


def as_list(name: str, value: object, of: str) -> Sequence[object]:
    """``value`` if it is a list, empty or not; ``of`` says what of."""
    if not isinstance(value, list | tuple):
        raise refused(name, f"a list of {of}", value, "Write it as [...].")
    return value


def as_object(name: str, value: object) -> Mapping[str, object]:
    """``value`` if it is an object of JSON."""
    if not isinstance(value, Mapping):
        raise refused(name, "an object", value, 'Write it as {"key": value}.')
    return value


def as_json(name: str, value: object) -> object:
    """``value`` if JSON can hold it: what goes into records must be that."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        mend = "Leave this field out, or write it as text."
        raise UserError(f"{name}: expected what JSON can hold ({error}), got {short(value)}. {mend}") from error
    return value


def has(values: Mapping[str, object], name: str) -> bool:
    """Whether there is a field ``name``, and it is not None."""
    return values.get(name) is not None


def need(values: Mapping[str, object], name: str) -> object:
    """The field ``name``, or the one that a dotted name leads to (``answers.text``, ``choices.0``).

    Raises:
        UserError: it is missing or None; the nearest name that is there is suggested.
    """
    if has(values, name):
        return values[name]
    head, _, rest = name.partition(".")
    if rest and has(values, head):
        return _inside(head, values[head], rest)
    if name in values:
        raise UserError(f"{name}: this field is null. Give it a value, or drop the line.")
    near = difflib.get_close_matches(name, values, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else "Add it, or name the one that stands for it."
    there = ", ".join(list(values)[:_MOST_SAID]) or "nothing"
    more = ", ..." if len(values) > _MOST_SAID else ""
    raise UserError(f"{name}: this field is missing. {hint} There is: {short_names(there)}{more}.")


def short_names(names: str) -> str:
    """Names of fields, cut where they are endless."""
    return names if len(names) <= 200 else f"{names[:197]}..."


def _inside(path: str, value: object, name: str) -> object:
    """What the dotted ``name`` leads to in the ``value`` at ``path``."""
    if isinstance(value, list | tuple):
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, Mapping):
        raise refused(path, f"an object or a list, for {path}.{name}", value, "Name another field.")
    try:
        return need(value, name)
    except UserError as error:
        raise UserError(f"{path}.{error}") from error


def answers_of(name: str, value: object) -> tuple[str, ...]:
    """The answers under ``name``: a string, a number, or a list of them with at least one."""
    if not isinstance(value, list | tuple):
        return (as_words(name, value),)
    if not value:
        raise refused(name, "at least one answer", value, "Write one, or drop the line.")
    return tuple(as_words(f"{name}[{place}]", item) for place, item in enumerate(value))
