"""Ctrl-C, in a real process and for real."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.conftest import EXPERIMENT
from forking import PATIENCE, Forks, Started
from swaa.config import load_experiment
from swaa.engine import interrupt, run_experiment
from swaa.engine.interrupt import StopRequested, stoppable

MORE = "num_examples=8"
NUM_SAMPLES = 3 * 2 * 2 * 8


@pytest.fixture(scope="module")
def file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupted") / "tiny.yaml"
    path.write_text(EXPERIMENT.format(model=model_folder, output=path.parent / "whole"))
    return path


@pytest.fixture(scope="module")
def whole(file: Path) -> dict[tuple[object, ...], object]:
    """The results of a run that nobody interrupted."""
    experiment = load_experiment(file, [MORE])
    run_experiment(experiment)
    found = results(experiment.output / "records.jsonl")
    assert len(found) == NUM_SAMPLES
    return found


def start(forks: Forks, file: Path, output: Path) -> Started:
    return forks.start(["run", str(file), "-o", str(output), MORE], threads=torch.get_num_threads())


def results(path: Path) -> dict[tuple[object, ...], object]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [(record["recipe_hash"], record["task"], record["length"], record["example"]) for record in records]
    assert len(set(keys)) == len(keys), "no sample twice"
    values = [
        (
            record["generated"],
            record["scores"]["forced_exact"],
            round(record["scores"]["forced_nll"], 4),
            record["cost"],
        )
        for record in records
    ]
    return dict(zip(keys, values, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_an_interrupted_run_can_be_continued(
    forks: Forks, file: Path, whole: dict[tuple[object, ...], object], tmp_path: Path, how: signal.Signals
) -> None:
    records = tmp_path / "cut" / "records.jsonl"
    process = start(forks, file, records.parent)
    deadline = time.monotonic() + PATIENCE
    while not (records.exists() and records.read_text().count("\n") >= 10):
        assert process.running, process.err
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pids[0], how)
    assert process.end() == [130], process.err
    err = process.err
    assert process.out == ""
    done = records.read_text()
    assert 10 <= done.count("\n") < NUM_SAMPLES, "the test must interrupt a run that is under way"
    assert f"Interrupted; {done.count(chr(10))} finished samples are kept in {records.parent}." in err
    assert "Run the same command again to go on from there." in err
    assert "Traceback" not in err

    again = start(forks, file, records.parent)
    assert again.end() == [0], again.err
    assert "half" in again.out
    assert records.read_text().startswith(done), "what was done stays as it was"
    assert results(records) == whole


@pytest.fixture
def default_ctrl_c() -> Iterator[None]:
    """Python's own handler; a shell starts background jobs with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_ctrl_c")
def test_the_first_ctrl_c_stops_in_order_and_the_second_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StopRequested), stoppable():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

    def stubborn() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except StopRequested:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), stoppable():
        stubborn()
    assert signal.getsignal(signal.SIGINT) is before


class Dying:
    """Asks to stop in its destructor, which swallows what is raised."""

    def __init__(self, how: signal.Signals = signal.SIGINT) -> None:
        self.how = how

    def __del__(self) -> None:
        signal.raise_signal(self.how)


def swallow(how: signal.Signals = signal.SIGINT) -> None:
    thing = Dying(how)
    del thing


@pytest.fixture
def late() -> Iterator[list[int]]:
    """Signals that come when no run is under way."""
    found: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: found.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("again", [0.02, 0], ids=["in a moment", "at once"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_a_request_that_a_destructor_swallowed_is_made_again(
    how: signal.Signals, again: float, late: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "_AGAIN", again)
    told: list[object] = []
    before = sys.unraisablehook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE

    def run() -> None:
        with stoppable():
            swallow(how)
            told.append("swallowed")
            while time.monotonic() < deadline:
                time.sleep(0.001)

    with pytest.raises(StopRequested):
        run()
    if again:
        assert told == ["swallowed"]
    assert time.monotonic() < deadline
    assert (sys.unraisablehook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert late == []


@pytest.mark.filterwarnings("error")
def test_a_swallowed_request_is_made_at_the_end_at_the_latest(late: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_AGAIN", PATIENCE)
    began, threads = time.monotonic(), threading.active_count()

    def fail() -> None:
        swallow()
        raise ValueError

    def ask_again() -> None:
        swallow()
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT), "both are heard again"
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StopRequested), stoppable():
        swallow()
    with pytest.raises(StopRequested) as raised, stoppable():
        fail()
    assert isinstance(raised.value.__context__, ValueError)
    with pytest.raises(StopRequested), stoppable():
        ask_again()
    assert time.monotonic() - began < PATIENCE
    assert threading.active_count() == threads
    assert late == []


@pytest.mark.filterwarnings("error")
def test_a_request_that_was_swallowed_does_not_act_as_a_second_one(late: list[int]) -> None:
    def run() -> None:
        with stoppable():
            swallow()
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                time.sleep(0.1)

    with pytest.raises(StopRequested):
        run()
    assert late == []


def test_a_request_swallowed_inside_stops_what_is_outside(late: list[int]) -> None:
    told: list[object] = []

    def run() -> None:
        with pytest.raises(StopRequested), stoppable():
            swallow()
        told.append("inside")
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(StopRequested), stoppable():
        run()
    assert told == ["inside"]
    assert late == []


def test_other_errors_of_destructors_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError

    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(found.exc_type))
    with stoppable():
        thing = Failing()
        del thing
    assert told == [ValueError]
