"""Real processes that run ``swaa`` and can be killed, without seconds of imports for each; see forks.py."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PATIENCE = 180
"""Seconds until a test gives up."""


@dataclass(frozen=True)
class Started:
    """Processes of one command, one for each rank."""

    pids: Sequence[int]
    log: Path
    answers: IO[bytes]

    @property
    def running(self) -> bool:
        """Does one of them still run?"""
        return not select.select([self.answers], [], [], 0)[0]

    def end(self) -> list[int | None]:
        """Wait for them: their exit codes, -9 for what signal 9 ended, None for a rank that hung."""
        codes: list[int | None] = _answer(self.answers)
        return codes

    @property
    def out(self) -> str:
        """What they printed, rank by rank."""
        return self._said("")

    @property
    def err(self) -> str:
        """What they said of errors and progress."""
        return self._said(".err")

    def _said(self, ending: str) -> str:
        return "".join(Path(f"{self.log}.{rank}{ending}").read_text() for rank in range(len(self.pids)))


class Forks:
    """The script beside this one, as a server.

    Args:
        warm_up: a short command that it runs itself, for all that is imported when it is first needed.
        folder: where the processes run.
    """

    def __init__(self, warm_up: Sequence[str], folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py")), *warm_up],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # what is read ahead, select does not see
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout
        _answer(self._answers)  # of the warm-up

    def start(self, argv: Sequence[str], *, ranks: int = 1, threads: int = 1) -> Started:
        """Start a command, each rank's process as a launcher would; its end has to be waited for before the next."""
        self._count += 1
        log = self._folder / f"log-{self._count}"
        order = {"argv": list(argv), "ranks": ranks, "threads": threads, "seconds": PATIENCE - 10, "log": str(log)}
        self._asks.write((json.dumps({**order, "folder": str(self._folder)}) + "\n").encode())
        return Started(_answer(self._answers), log, self._answers)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _answer(answers: IO[bytes]) -> list[int]:
    while True:
        assert select.select([answers], [], [], PATIENCE)[0], "no answer in time"
        line = answers.readline()
        assert line, "the server of forks has ended"
        if line.startswith(b"["):  # what the warm-up prints is no answer
            found: list[int] = json.loads(line)
            return found
