"""The score book: what has been measured, so that nothing is measured twice, not after an interruption either."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swaa.errors import UserError
from swaa.jsonlines import drop_torn_line, read_lines
from swaa.search.choices import Choice, Unit, in_order

_Key = tuple[str, str, tuple[Unit, ...]]


class ScoreBook:
    """Values by (subject, metric, choice); with a path, also one JSON line each in a file that grows.

    A subject is what is measured: model, items and base policy, as :attr:`swaa.search.probe.Probe.subject` has it. So
    one book serves probes of many base policies. What an interruption tore is dropped.

    Args:
        path: the file, made with the first value, its folder too; None keeps values in memory alone.

    Raises:
        UserError: the file cannot be read, or a line of it is no score.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._values: dict[_Key, list[Any]] = {}
        if path is None:
            return
        try:
            drop_torn_line(path)
            fault, mend = "is no score", "Delete the file; what was in it is measured again."
            self._values = dict(read_lines(path, _parse, fault=fault, mend=mend))
        except OSError as error:
            raise _unusable(path, error) from error

    def __len__(self) -> int:
        return len(self._values)

    def find(self, subject: str, metric: str, chosen: Iterable[Unit] = ()) -> Tensor | None:
        """float64, with the items first, on the CPU; None where it has not been measured."""
        values = self._values.get((subject, metric, in_order(chosen)))
        return None if values is None else torch.tensor(values, dtype=torch.float64)

    def add(self, subject: str, metric: str, chosen: Choice, values: Tensor) -> None:
        """Keep what was measured; a value that is there already stays.

        Raises:
            UserError: the file cannot be written.
        """
        key = (subject, metric, in_order(chosen))
        if key in self._values:
            return
        plain = values.double().tolist()
        if self.path is not None:
            line = json.dumps({"subject": subject, "metric": metric, "chosen": key[2], "values": plain})
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab", buffering=0) as file:  # one call: no Ctrl-C leaves half a line to write on
                    file.write(f"{line}\n".encode())
            except OSError as error:
                raise _unusable(self.path, error) from error
        self._values[key] = plain


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"score book {path}: {error.strerror}. Choose another folder.")


def _parse(line: str) -> tuple[_Key, list[Any]]:
    fields = json.loads(line)
    chosen = tuple(_unit(item) for item in fields["chosen"])
    torch.tensor(fields["values"], dtype=torch.float64)  # refuses what is no number, and ragged lists
    return (str(fields["subject"]), str(fields["metric"]), chosen), fields["values"]


def _unit(item: Any) -> Unit:
    if isinstance(item, int):
        return item
    layer, head = item
    return int(layer), int(head)
