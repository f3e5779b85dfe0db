"""Files of JSON lines that grow while something runs: a value a line, the last of which an interruption may tear."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from swaa.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def to_line(value: DataclassInstance) -> str:
    """The fields of a dataclass as one line of JSON, without the line's end."""
    return json.dumps(dataclasses.asdict(value), ensure_ascii=False)


def read_lines(path: Path, parse: Callable[[str], T], *, fault: str, mend: str) -> Iterator[T]:
    """What ``parse`` makes of each line of a file, in order; nothing where there is no file.

    A last line without its line end was torn by an interruption, or is being written, and is left out.

    Args:
        parse: from a line to a value; ``ValueError``, ``TypeError``, ``KeyError`` and ``AttributeError`` say that the
            line holds something else, ``UserError`` which field of it is wrong and what to do.
        fault: what is wrong with such a line: ``is no record``.
        mend: what to do then, as a sentence in the imperative.

    Raises:
        UserError: a line cannot be read; its number is told, and the field where that is known.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                value = parse(line)
            except UserError as error:
                raise UserError(f"{path}:{number}: {error}") from error
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{path}:{number}: this line {fault} ({error}). {mend}") from error
            yield value


def drop_torn_line(path: Path) -> None:
    """Remove what follows the last line end of a file, which an interruption tore, so that lines can be added."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
