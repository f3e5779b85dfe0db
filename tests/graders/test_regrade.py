"""``swaa grade``: a real run of a tiny model, whose judge fails; its answers are graded again without the model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.conftest import make_model, make_tokenizer
from graders.judge_server import Asked, JudgeServer, Reply, fails, says, serving
from swaa.cli import main
from swaa.config import load_experiment
from swaa.engine import run_experiment
from swaa.engine.folder import RunFolder
from swaa.engine.regrade import BEFORE, regrade
from swaa.errors import UserError
from swaa.graders import Recall
from swaa.graders.judge import API_KEY_ENV, BASE_URL_ENV
from swaa.report import Record, read_records, read_run

NUM = 6


def moody(asked: Asked, before: int) -> Reply:
    """It fails for the questions of even numbers, and is right about the others."""
    return fails(500, "overloaded") if int(asked.prompt.split("number ")[1][0]) % 2 == 0 else says("VERDICT: CORRECT")


def kind(asked: Asked, before: int) -> Reply:
    return says("VERDICT: WRONG")


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with serving(moody) as server:
        yield server


@pytest.fixture(autouse=True)
def set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: JudgeServer) -> None:
    monkeypatch.setenv(API_KEY_ENV, "a-key-of-a-test")
    monkeypatch.setenv(BASE_URL_ENV, server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SWAA_HOME", str(tmp_path / "home"))
    server.script = moody
    server.asked.clear()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server: JudgeServer) -> Path:
    """The folder of a run of two recipes on six questions, half of whose answers the judge did not grade."""
    home = tmp_path_factory.mktemp("regrade")
    make_model().save_pretrained(home / "model")
    make_tokenizer().save_pretrained(home / "model")
    questions = [
        {"id": f"q{number}", "prompt": f"What is number {number}?", "answer": str(number)} for number in range(NUM)
    ]
    (home / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in questions))
    judge = {"name": "judge", "model": "a-judge", "retries": 0, "cache": False}
    experiment = {
        "model": {"name": str(home / "model"), "device": "cpu"},
        "recipes": [{"name": "FA", "policy": "FullAttention()"}, {"name": "swa", "policy": "SlidingWindow(8)"}],
        "tasks": [{"name": "file", "path": str(home / "questions.jsonl"), "grader": judge}],
        "lengths": [400],
        "num_examples": NUM,
        "batch_size": 3,
        "scoring": ["generate"],
        "decoding": {"max_new_tokens": 4},
        "output": str(home / "run"),
    }
    (home / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ((API_KEY_ENV, "a-key-of-a-test"), (BASE_URL_ENV, server.url), ("NO_PROXY", "127.0.0.1")):
            patch.setenv(name, value)
        run_experiment(load_experiment(home / "experiment.yaml"))
    return home / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(finished, tmp_path / "run")


def records(run: Path) -> list[Record]:
    return read_records(run / "records.jsonl")


def failed(run: Path) -> list[Record]:
    return [record for record in records(run) if record.error is not None]


def ungraded(record: Record) -> dict[str, Any]:
    """All of a record but its grade."""
    scores = {name: value for name, value in record.scores.items() if name not in ("score", "all_correct")}
    return dataclasses.asdict(dataclasses.replace(record, scores=scores, verdict=None, error=None))


def test_a_failing_judge_leaves_errors_and_no_zeros(run: Path) -> None:
    assert len(records(run)) == 2 * NUM
    assert len(failed(run)) == NUM
    for record in failed(run):
        assert "score" not in record.scores
        assert record.verdict is None
        assert record.error == "judge a-judge: 500 Internal Server Error: overloaded; given up after 1 requests"
    assert all(record.scores["score"] == 1 for record in records(run) if record.error is None)


def test_errors_alone_are_graded_again(run: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    before, table = records(run), (run / "table.md").read_text()
    content = (run / "records.jsonl").read_bytes()
    server.script = kind
    assert main(["grade", str(run)]) == 0
    after = records(run)
    assert len(server.asked) == NUM
    assert [ungraded(record) for record in after] == [ungraded(record) for record in before]
    for old, new in zip(before, after, strict=True):
        if old.error is None:
            assert new == old
        else:
            assert (new.scores["score"], new.scores["all_correct"], new.verdict, new.error) == (0, 0, "wrong", None)
    assert (run / BEFORE).read_bytes() == content
    assert (run / "table.md").read_text() != table
    assert f"{run}: {NUM} answers graded again, {NUM} keep their grade." in capsys.readouterr().out
    assert main(["grade", str(run)]) == 0
    assert f"{run}: nothing to grade again; {2 * NUM} answers keep their grade. --all grades" in capsys.readouterr().out
    assert len(server.asked) == NUM


def test_what_fails_again_is_told(run: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = lambda asked, before: fails(400, "too long" if "number 0" in asked.prompt else "no")
    assert main(["grade", str(run)]) == 1
    out = capsys.readouterr().out
    assert f"  {NUM} could not be graded again:\n" in out
    assert "too long" in out
    assert {record.error is not None and "refuses the request" in record.error for record in failed(run)} == {True}


def test_all_with_another_grader(run: Path, server: JudgeServer) -> None:
    before = records(run)
    done = regrade(run, "recall", everything=True)
    assert (done.graded, done.kept, done.no_sample, done.failed) == (2 * NUM, 0, 0, 0)
    for old, new in zip(before, records(run), strict=True):
        assert new.error is None
        assert new.verdict is None
        assert new.scores["score"] == float(old.answer in str(old.generated))
    assert read_run(run).info.tasks[0].grader == Recall().to_dict()
    assert len(done.rows) == 2
    assert len(server.asked) == 0


def test_another_grader_for_some_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grade", str(run), "--grader", "{name: regex, pattern: '.'}"]) == 0
    assert "The kept grades may be another grader's: --all grades all" in capsys.readouterr().out
    assert read_run(run).info.tasks[0].grader["name"] == "judge"


def test_an_interrupted_run_is_graded_as_far_as_it_came(run: Path) -> None:
    """As a kill leaves it: no tables, a torn line, an answer of an example that is no more asked for."""
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    stray = dataclasses.replace(Record.from_json(lines[0]), example="gone", error="it failed")
    (run / "records.jsonl").write_text("".join([*lines[:4], f"{stray.to_json()}\n", lines[4][:30]]))
    (run / "table.md").unlink()
    done = regrade(run, Recall(), everything=True)
    assert (done.graded, done.kept, done.no_sample) == (4, 0, 1)
    assert len(records(run)) == 5
    assert failed(run) == [stray]
    assert [row.n for row in done.rows] == [4]
    assert (run / "table.md").read_text()


def test_a_mistake_changes_nothing(run: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (run / "records.jsonl").read_bytes()
    server.script = lambda asked, before: fails(401, "who are you")
    with pytest.raises(UserError, match="refuses the request .401 Unauthorized: who are you.. Put a key"):
        regrade(run)
    with (
        RunFolder(load_experiment(run / "experiment.yaml", output=run)),
        pytest.raises(UserError, match="another process"),
    ):
        regrade(run)
    monkeypatch.delenv(API_KEY_ENV)
    with pytest.raises(UserError, match=f"there is no key for the endpoint. .*{API_KEY_ENV}"):
        regrade(run)
    with pytest.raises(UserError, match="unknown grader 'recal'. Did you mean 'recall'?"):
        regrade(run, "recal")
    assert (run / "records.jsonl").read_bytes() == content
    assert not (run / BEFORE).exists()


def test_what_is_kept_is_the_very_first_state(run: Path) -> None:
    content = (run / "records.jsonl").read_bytes()
    for name in ("recall", "exact"):
        regrade(run, name, everything=True)
    assert (run / BEFORE).read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["{run}", "--grader", "{{name"], "--grader: expected the name of a grader or a mapping in YAML"),
        (["{run}", "--grader", "null"], "--grader: expected the name of a grader or a mapping in YAML"),
        (["{run}", "--grader", "judge"], "judge.model: this field is missing"),
    ],
)
def test_mistakes(run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grade", *(argument.format(run=run) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_a_spoilt_sample_is_named(run: Path) -> None:
    path = run / "samples.jsonl"
    path.write_text(f'{{"task": 1}}\n{path.read_text()}')
    with pytest.raises(UserError, match=r"samples.jsonl:1: this line is no sample \('length'\). Run the same"):
        regrade(run)


def test_a_run_does_not_go_on_with_answers_that_another_grader_graded(run: Path) -> None:
    regrade(run, "exact", everything=True)
    more = load_experiment(run / "experiment.yaml", [f"num_examples={NUM + 1}"], output=run)
    with pytest.raises(UserError, match=r"were graded again by .*'exact'.*Grade them back with `swaa grade --all"):
        run_experiment(more)
    regrade(run, everything=True)
    run_experiment(load_experiment(run / "experiment.yaml", output=run))
