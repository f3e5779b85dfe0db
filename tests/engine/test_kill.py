"""``kill -9`` at random moments of a run: nothing is lost but the samples in flight, and nothing comes twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import os, random, signal, sys, time
import torch
from rich.console import Console
from swaa.config import load_experiment
from swaa.engine import run_experiment

torch.set_num_threads(1)  # a fork takes no threads along
file, folder, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
experiment = load_experiment(file, output=folder)
quiet = Console(quiet=True)

def begin():
    child = os.fork()
    if not child:
        run_experiment(experiment, console=quiet)
        os._exit(0)
    return child

draw = random.Random(7)
seconds = float(sys.argv[4])
for _ in range(kills):
    child = begin()
    time.sleep(seconds * draw.random())
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    records = os.path.join(folder, "records.jsonl")
    count = open(records).read().count("\\n") if os.path.exists(records) else 0
    print("killed" if os.WIFSIGNALED(status) else "ended", count)
began = time.perf_counter()
assert os.waitpid(begin(), 0)[1] == 0
print("seconds", time.perf_counter() - began)
"""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("recipe_hash", "task", "length", "example", "generation"))


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from run to run."""
    return {name: value for name, value in record.items() if name != "timing"}


def run(program: Path, file: Path, folder: Path, kills: int, seconds: float) -> list[str]:
    command = [sys.executable, str(program), str(file), str(folder), str(kills), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_killed_at_ten_random_moments(experiment_file: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    seconds = float(run(program, experiment_file, tmp_path / "whole", 0, 0)[-1].split()[1])
    told = run(program, experiment_file, tmp_path / "killed", 10, seconds)
    kills = [line.split() for line in told[:-1]]
    assert len(kills) == 10
    assert sum(state == "killed" for state, _ in kills) >= 5, "most of them hit a run that was going on"
    counts = [int(count) for _, count in kills]
    assert counts == sorted(counts), "a record was lost"
    assert len(set(counts)) >= 3, "the kills hit the run at different states"
    whole, killed = lines(tmp_path / "whole"), lines(tmp_path / "killed")
    assert len({key(record) for record in killed}) == len(killed) == len(whole), "nothing comes twice"
    assert {key(record): outcome(record) for record in killed} == {key(record): outcome(record) for record in whole}
