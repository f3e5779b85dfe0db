"""``kill -9`` at random moments of a run: nothing is lost but the samples in flight, and nothing comes twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from forking import Forks, Started

KILLS = 10


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "records.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("recipe_hash", "task", "length", "example", "generation"))


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from run to run."""
    return {name: value for name, value in record.items() if name != "timing"}


def wait_for_records(folder: Path, count: int, *, seconds: float) -> None:
    """Until so many are there, or the time is up."""
    until = time.monotonic() + seconds
    while len(lines(folder)) < count and time.monotonic() < until:
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_at_ten_random_moments(forks: Forks, experiment_file: Path, tmp_path: Path) -> None:
    def start(folder: str) -> Started:
        return forks.start(["run", str(experiment_file), "--output", str(tmp_path / folder)])

    began = time.monotonic()
    assert start("whole").end() == [0]
    seconds = time.monotonic() - began
    whole = lines(tmp_path / "whole")
    draw, ends, counts = random.Random(7), [], [0]
    for number in range(KILLS):
        process = start("killed")
        if number % 2:  # while records come in, from one of them on
            wanted = counts[-1] + draw.randint(1, max(1, len(whole) // KILLS))
            wait_for_records(tmp_path / "killed", min(wanted, len(whole)), seconds=5 * seconds)
            time.sleep(draw.uniform(0, 0.02))
        else:  # at any time before and after
            time.sleep(seconds * draw.uniform(0, 0.5))
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(process.pids[0], signal.SIGKILL)
        ends += process.end()
        counts.append(len(lines(tmp_path / "killed")))
    last = start("killed")
    assert last.end() == [0], last.err
    assert ends.count(-signal.SIGKILL) >= KILLS / 2, "most of them hit a run that was going on"
    assert set(ends) <= {-signal.SIGKILL, 0}
    assert counts == sorted(counts), "a record was lost"
    assert len(set(counts[1:])) >= 3, "the kills hit the run at different states"
    killed = lines(tmp_path / "killed")
    assert len({key(record) for record in killed}) == len(killed) == len(whole), "nothing comes twice"
    assert {key(record): outcome(record) for record in killed} == {key(record): outcome(record) for record in whole}
