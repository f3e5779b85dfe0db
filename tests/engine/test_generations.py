"""Several answers to one prompt: what is drawn, what is kept, and pass@k in the tables. And answers without a grade."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from swaa.config import Experiment, load_experiment
from swaa.engine import run_experiment
from swaa.errors import UserError
from swaa.graders import Grade, Grader, Question, parse_grader, register_grader
from swaa.report import Record, Row, read_records
from swaa.report.runs import read_run
from swaa.tasks.file import File

SMALL = ["num_examples=2", "lengths=[400]"]
HOT = [*SMALL, "decoding.temperature=1", "decoding.max_new_tokens=5"]


@pytest.fixture
def file(experiment_file: Path) -> Path:
    """Two recipes, one of which reasons, on one task."""
    values = experiment_file.read_text()
    start, end = values.index("  - {name: half"), values.index("tasks:")
    cot = '  - {name: cot, policy: "SlidingWindow(16)", prompting: {name: chain_of_thought, budget: 2, marker: "A:"}}\n'
    values = values[:start] + cot + values[end:]
    values = values.replace("  - {name: needle_multikey, num_keys: 2}\n", "")
    experiment_file.write_text(values)
    return experiment_file


def records_of(experiment: Experiment) -> list[Record]:
    return read_records(experiment.output / "records.jsonl")


def said(records: Sequence[Record]) -> dict[tuple[str, str, int], tuple[object, ...]]:
    """What came of each answer, by recipe, example and number."""
    return {
        (one.recipe, one.example, one.generation): (one.generated, one.final, one.ending, one.scores.get("score"))
        for one in records
    }


# ---------------------------------------------------------------------------------------------- what is drawn


def test_generations_are_the_runs_with_the_next_seeds(file: Path, tmp_path: Path) -> None:
    several = load_experiment(file, [*HOT, "num_generations=3", "decoding.seed=7"], output=tmp_path / "several")
    run_experiment(several)
    together = said(records_of(several))
    assert len(together) == 3 * 2 * 3
    alone = {}
    for number in range(3):
        one = load_experiment(file, [*HOT, f"decoding.seed={7 + number}"], output=tmp_path / str(number))
        run_experiment(one)
        found = said(records_of(one))
        assert {key[2] for key in found} == {0}
        alone |= {(recipe, example, number): value for (recipe, example, _), value in found.items()}
    assert together == alone
    texts = [tuple(together[recipe, example, n][0] for n in range(3)) for recipe, example, _ in together]
    assert any(len({*some}) == 3 for some in texts), "they differ"


def test_the_numbers_of_a_table_are_those_of_its_records(file: Path) -> None:
    experiment = load_experiment(file, [*HOT, "num_generations=3"])
    rows = run_experiment(experiment)
    records = records_of(experiment)
    assert len({record.key for record in records}) == len(records) == experiment.num_samples
    table = (experiment.output / "table.md").read_text()
    assert "pass@2 %" in table
    assert "pass@3 %" in table
    for row in rows:
        right = {}
        for record in records:
            if record.recipe == row.recipe:
                right.setdefault(record.example, []).append(record.scores["all_correct"])
        passed = sum(any(some) for some in right.values()) / len(right)
        assert dict(row.passes)[3].value == pytest.approx(passed), "of three answers, three are drawn"
        assert (row.n, row.answers) == (2, 6)
    assert json.loads((experiment.output / "run.json").read_text())["asked"] == len(records)


def test_more_generations_are_added_and_nothing_else(file: Path, tmp_path: Path) -> None:
    """One, then three: the bytes of the first stay, and the others are those of a run of three."""
    experiment = load_experiment(file, HOT)
    run_experiment(experiment)
    path = experiment.output / "records.jsonl"
    before = path.read_bytes()
    more = load_experiment(file, [*HOT, "num_generations=3"])
    run_experiment(more)
    assert path.read_bytes().startswith(before)
    whole = load_experiment(file, [*HOT, "num_generations=3"], output=tmp_path / "whole")
    run_experiment(whole)
    assert said(records_of(more)) == said(records_of(whole))
    after = path.read_bytes()
    run_experiment(more)
    assert path.read_bytes() == after
    rows = run_experiment(load_experiment(file, HOT))
    assert path.read_bytes() == after, "asking for fewer takes nothing away"
    assert [row.recipe for row in rows] == ["FA", "swa", "cot"]
    assert read_run(experiment.output).info.asked == 6


def test_a_gap_in_the_middle_is_filled_with_the_very_answer(file: Path) -> None:
    experiment = load_experiment(file, [*HOT, "num_generations=3"])
    run_experiment(experiment)
    path = experiment.output / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    whole = said(records_of(experiment))
    gone = [line for line in lines if json.loads(line)["generation"] == 1][::2]
    path.write_text("".join(line for line in lines if line not in gone))
    assert len(records_of(experiment)) == len(whole) - len(gone)
    run_experiment(experiment)
    assert said(records_of(experiment)) == whole
    assert len(records_of(experiment)) == len(whole)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_generations=2"], r"num_generations: 2, and recipe 'FA' decodes greedily, .*temperature"),
        (["num_generations=0"], r"num_generations: expected an int >= 1, got 0"),
        (["num_generations=2", "decoding.temperature=1", "scoring=[teacher_forced]", "recipes[2].prompting=direct"],
         r"num_generations: nothing is generated. Add generate to scoring"),
    ],
)  # fmt: skip
def test_generations_that_would_tell_nothing_are_refused(file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment(file, overrides)


# ---------------------------------------------------------------------------------------------- no grade


@register_grader
@dataclass(frozen=True)
class Failing(Grader):
    """Cannot grade what asks for a ferry; the others are right."""

    name: ClassVar[str] = "failing_in_a_test"

    def grade(self, text: str, question: Question) -> Grade:
        """No grade, or 1."""
        if "ferry" in question.prompt:
            return Grade(None, error="the endpoint does not answer")
        return Grade(1.0, verdict="correct")


@pytest.fixture
def failing(file: Path, tmp_path: Path) -> Experiment:
    """Six questions, of which two get no grade."""
    lines = [
        {"prompt": f"Where is the {what}?", "answer": "there"} for what in ("ferry", "key", "sea", "ferry boy", "x")
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    experiment = load_experiment(file, [*SMALL, "num_examples=9"])
    task = File(path=str(data), grader=parse_grader("failing_in_a_test"))
    return dataclasses.replace(experiment, tasks=(task,))


def by_recipe(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.recipe: row for row in rows}


def test_an_answer_without_a_grade_has_no_score_and_harms_no_other(failing: Experiment) -> None:
    rows = by_recipe(run_experiment(failing))
    records = records_of(failing)
    assert len(records) == 3 * 5
    for record in records:
        question = dict(record.metadata)["item"]
        failed = question in ("questions-1", "questions-4")
        assert record.error == ("the endpoint does not answer" if failed else None)
        assert ("score" in record.scores, "all_correct" in record.scores) == (not failed, not failed)
        assert record.verdict == (None if failed else "correct")
        assert record.generated is not None
        if record.recipe != "cot":
            assert "forced_nll" in record.scores, "what could be scored is"
    for row in rows.values():
        assert row.accuracy is not None
        assert (row.accuracy.value, row.accuracy.n) == (1.0, 3), "no zeros for what has no grade"
    before = (failing.output / "records.jsonl").read_bytes()
    run_experiment(failing)
    assert (failing.output / "records.jsonl").read_bytes() == before
    lines = (failing.output / "table.md").read_text().splitlines()
    header = next([cell.strip() for cell in line.split("|")] for line in lines if "recipe" in line)
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == len(header) and any(name in cells for name in rows):
            told = dict(zip(header, cells, strict=True))
            assert (told["errors"], told["graded"]) == ("2", "3")
