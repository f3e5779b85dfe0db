"""A folder of results that grow line by line, that one process at a time writes, and that a later one goes on with."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from swaa.errors import UserError
from swaa.jsonlines import drop_torn_line

MEND = "Choose another folder with --output, or delete these results with --fresh."
_LOCK = ".lock"


class ResumableFolder(ABC):
    """A context that makes the folder, locks it and goes on in it.

    Raises:
        UserError: the folder cannot be made, or another process runs in it; and what :meth:`_begin` raises.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / _LOCK)

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as locked:
                locked.enter_context(self._lock.acquire(timeout=0))
                self._begin()
                locked.pop_all()  # all is well: keep the lock
        except Timeout as error:
            mend = "Wait for it, or choose another folder with --output."
            raise UserError(f"another process is running in {self.path}. {mend}") from error
        except OSError as error:
            mend = "Choose another with --output."
            raise UserError(f"output folder {self.path}: {error.strerror}. {mend}") from error
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    @abstractmethod
    def _begin(self) -> None:
        """Check and prepare what is there; the lock is held."""

    def _delete(self, *names: str) -> None:
        """Remove what a former run wrote."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def _refuse(self, changes: Iterable[str], *, what: str) -> None:
        """Refuse to go on in a folder that holds ``what`` (``results of a different experiment``), if anything changed.

        Raises:
            UserError: there are changes; they are listed.
        """
        listed = "".join(f"\n  {change}" for change in changes)
        if listed:
            raise UserError(f"{self.path} holds {what}:{listed}\n{MEND}")

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file so that it is there whole, or is as it was."""
        self._replace_parts(name, [content])

    def _replace_lines(self, name: str, lines: Iterable[str]) -> None:
        """The same for lines, which are never all in memory."""
        self._replace_parts(name, (f"{line}\n".encode() for line in lines))

    def _replace_parts(self, name: str, parts: Iterable[bytes]) -> None:
        path, draft = self.path / name, self.path / f".{name}.new"
        with draft.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def _drop_torn_line(self, name: str) -> None:
        """Remove what follows the last line end of a file: a line that an interruption tore."""
        drop_torn_line(self.path / name)


def changed(pairs: Iterable[tuple[str, object, object]]) -> list[str]:
    """A line for each ``(field, before, now)`` whose values differ."""
    return [f"{field}: {was!r} there, {new!r} now" for field, was, new in pairs if was != new]
