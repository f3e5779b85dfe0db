"""Data files: JSON lines, JSON lists and Parquet as rows, each with its place for messages."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from swaa.errors import UserError, unknown
from swaa.tasks.fields import need, refused, short


@dataclass(frozen=True)
class Row:
    """One line of a ``.jsonl`` file, item of a ``.json`` list, or row of a Parquet file.

    Attributes:
        place: where it stands, for messages: ``data.jsonl:3``.
        number: the number of its line, item or row, from 1.
        values: what it says; an object in all files that are right.
    """

    place: str
    number: int
    values: object


@dataclass(frozen=True)
class DataFile:
    """A file that was read.

    Attributes:
        path: where it is.
        sha256: of its bytes, in hexadecimal.
        rows: in order.
    """

    path: Path
    sha256: str
    rows: tuple[Row, ...]


def open_data(path: Path | str, rows_at: str | None = None) -> DataFile:
    """The data file at ``path``; read again only where it has changed since.

    Args:
        path: a ``.jsonl``, ``.json`` or ``.parquet`` file.
        rows_at: dotted name of the list in a ``.json`` file that is no list itself.

    Raises:
        UserError: see :func:`read_rows`; or the file has no rows.
    """
    path = Path(path)
    check_file(path, KINDS)
    stat = path.stat()
    return _open(path.absolute(), os.fspath(path), rows_at, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _open(_: Path, path: str, rows_at: str | None, __: int, ___: int) -> DataFile:
    data = _bytes(Path(path))
    rows = tuple(_rows(Path(path), data, rows_at))
    if not rows:
        raise UserError(f"{path}: the file is empty. Write one example a line, or name another file.")
    return DataFile(Path(path), hashlib.sha256(data).hexdigest(), rows)


def read_rows(path: Path, kinds: Collection[str]) -> Iterator[Row]:
    """The rows of a file whose suffix is one of ``kinds``. Blank lines count, and are skipped.

    Raises:
        UserError: there is no such file, it is of another kind, cannot be read, or a line is no JSON or no UTF-8; the
            line is named.
    """
    check_file(path, kinds)
    return _rows(path, _bytes(path), None)


def check_file(path: Path, kinds: Collection[str]) -> None:
    """Refuse a path where no file is, or one whose suffix is none of ``kinds``."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file. Check the path; it is taken from the folder you work in.")
    if path.suffix.lower() not in kinds:
        raise UserError(f"{path}: {unknown('kind of file', path.suffix, kinds)}")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: it cannot be read: {error.strerror}. Check its permissions.") from error


def _rows(path: Path, data: bytes, rows_at: str | None) -> Iterator[Row]:
    kind = path.suffix.lower()
    if kind == ".json":
        return _items(path, data, rows_at)
    if rows_at is not None:
        raise refused("rows", "nothing for a file of rows", rows_at, "It is for .json files; remove it.")
    return KINDS[kind](path, data)


def _lines(path: Path, data: bytes) -> Iterator[Row]:
    for number, line in enumerate(_without_mark(data).split(b"\n"), start=1):
        place = f"{path}:{number}"
        text = _decoded(place, line)
        if text.strip():
            yield Row(place, number, _parsed(place, text, "Write one JSON object a line."))


def _items(path: Path, data: bytes, rows_at: str | None = None) -> Iterator[Row]:
    text = _decoded(str(path), _without_mark(data))
    if not text.strip():
        return
    value = _parsed(str(path), text, "Is it one object a line? Then rename the file to .jsonl.")
    if rows_at is not None:
        if not isinstance(value, Mapping):
            raise refused(f"{path}: rows", "nothing, as the file is a list itself", rows_at, "Remove it.")
        value = need(value, rows_at)
    if not isinstance(value, list):
        mend = "Name the field of it that holds the list, where the task has 'rows' for that."
        raise refused(str(path), "a list of objects", value, mend)
    for number, item in enumerate(value, start=1):
        yield Row(f"{path}: item {number}", number, item)


def _parquet(path: Path, data: bytes) -> Iterator[Row]:
    """Rows of a Parquet file. Metadata may be text that holds a JSON object."""
    try:
        # it has no types, and need not be installed
        import pyarrow  # type: ignore[import-untyped, import-not-found, unused-ignore]
        from pyarrow import parquet  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        mend = "Install it: pip install 'swaa[parquet]'; or give the data as .jsonl."
        raise UserError(f"{path}: reading Parquet takes pyarrow, which is not installed. {mend}") from error
    try:
        rows = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: not a Parquet file that can be read ({reason}). Write it anew.") from error
    for number, row in enumerate(rows, start=1):
        place = f"{path}:{number}"
        if isinstance(row.get("metadata"), str):
            try:
                row["metadata"] = json.loads(row["metadata"])
            except ValueError as error:
                raise UserError(f"{place}: metadata: not a JSON object ({error}). Mend or drop it.") from error
        yield Row(place, number, row)


KINDS: Mapping[str, Callable[[Path, bytes], Iterator[Row]]] = {
    ".jsonl": _lines,
    ".json": _items,
    ".parquet": _parquet,
}
"""Suffix -> what reads the bytes of such a file."""


def _without_mark(data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors begin a UTF-8 file with


def _decoded(place: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 ({error}). Save the file as UTF-8.") from error


def _parsed(place: str, text: str, mend: str) -> object:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}): {short(text)}. {mend}") from error
