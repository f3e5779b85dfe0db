"""Grading the answers of a run again, without the model: after a judge's endpoint failed, or with another grader."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from swaa.config import load_experiment
from swaa.engine.folder import EXPERIMENT, RunFolder
from swaa.engine.progress import make_progress
from swaa.errors import UserError
from swaa.graders import Grade, Grader, Question, parse_grader
from swaa.jsonlines import read_lines
from swaa.report import Record, Row, read_run
from swaa.report.records import RECORDS
from swaa.report.runs import SAMPLES

BEFORE = f"{RECORDS}.before-grade"
"""The records as they were before the first time that they were graded again."""
CHUNK = 256
"""Answers that are given to a grader at a time, between two moves of the progress bar."""

_MEND = "Run the same `swaa run` again, which writes the file anew."


class Place(NamedTuple):
    """What an example is known by, whatever recipe answers it."""

    task: str
    length: int
    example: str


@dataclass(frozen=True)
class Regraded:
    """What became of a run's records.

    Attributes:
        graded: answers that were graded again.
        kept: answers that keep the grade they had.
        no_sample: answers that should have been graded, of examples that ``samples.jsonl`` does not hold.
        errors: why answers could not be graded, this time again; each text once.
        failed: how many they are.
        rows: the tables, anew.
    """

    graded: int
    kept: int
    no_sample: int
    errors: tuple[str, ...]
    failed: int
    rows: list[Row]


def regrade(
    path: Path,
    grader: str | Mapping[str, object] | Grader | None = None,
    *,
    everything: bool = False,
    console: Console | None = None,
) -> Regraded:
    """Grade a run's answers again and write its records and tables anew; the model is not loaded.

    The records are replaced at once when all are graded, so an interruption leaves them as they were; what a judge had
    replied by then is in its cache. Their first state is kept as ``BEFORE``.

    Args:
        path: the folder of the run, finished or interrupted.
        grader: what grades (default: the grader of each answer's task).
        everything: grade all generated answers, not only those that could not be graded.
        console: where progress is drawn (default: standard error, if it is a terminal).

    Raises:
        UserError: the folder holds no run, or one that is running; a file in it cannot be read; the grader is unknown
            or lacks what it needs; or see ``Grader.grade_all``.
    """
    read_run(path)  # says what is wrong with the folder before anything is made in it
    experiment = load_experiment(path / EXPERIMENT, output=path)
    graders = {task.label: task.grader if grader is None else parse_grader(grader) for task in experiment.tasks}
    with RunFolder(experiment) as folder:
        records = folder.records()
        chosen = [
            number
            for number, record in enumerate(records)
            if record.generated is not None and record.task in graders and (everything or record.error is not None)
        ]
        for label in {records[number].task for number in chosen}:
            graders[label].check()
        questions = _questions(path / SAMPLES, {_place(records[number]) for number in chosen})
        known = [number for number in chosen if _place(records[number]) in questions]
        grades = _grades(records, known, graders, questions, console or Console(stderr=True))
        for number, grade in grades.items():
            records[number] = with_grade(records[number], grade)
        if grades:
            _keep_first(path)
            folder.replace_records(records)
            if everything:
                _tell_graders(folder, graders)
        rows = folder.write_tables(read_run(path).records)
    errors = [grade.error for grade in grades.values() if grade.error is not None]
    return Regraded(
        graded=len(known),
        kept=len(records) - len(chosen),
        no_sample=len(chosen) - len(known),
        errors=tuple(dict.fromkeys(errors)),
        failed=len(errors),
        rows=rows,
    )


def with_grade(record: Record, grade: Grade) -> Record:
    """The record with this grade in place of the one it had; other scores stay."""
    scores = {name: value for name, value in record.scores.items() if name not in ("score", "all_correct")}
    if grade.score is not None:
        scores |= {"score": grade.score, "all_correct": float(grade.all_correct)}
    return dataclasses.replace(record, scores=scores, verdict=grade.verdict, error=grade.error)


def _place(record: Record) -> Place:
    return Place(record.task, record.length, record.example)


def _questions(path: Path, wanted: set[Place]) -> dict[Place, Question]:
    """The wanted examples' questions; prompts of others are not kept, as they may be books."""
    parsed = read_lines(path, lambda line: _question(line, wanted), fault="is no sample", mend=_MEND)
    return dict(found for found in parsed if found is not None)


def _question(line: str, wanted: set[Place]) -> tuple[Place, Question] | None:
    values = json.loads(line)
    place = Place(values["task"], values["length"], values["example"])
    if place not in wanted:
        return None
    span = values["question_span"]
    question = values["question"] if span is None else values["prompt"][slice(*span)]
    return place, Question(question, tuple(values["references"]), values["metadata"])


def _grades(
    records: list[Record],
    numbers: Iterable[int],
    graders: Mapping[str, Grader],
    questions: Mapping[Place, Question],
    console: Console,
) -> dict[int, Grade]:
    """The grades of the records of these numbers, task by task."""
    by_task: dict[str, list[int]] = {}
    for number in numbers:
        by_task.setdefault(records[number].task, []).append(number)
    grades: dict[int, Grade] = {}
    with make_progress(console) as progress:
        bar = progress.add_task("answers", total=sum(map(len, by_task.values())))
        for label, some in by_task.items():
            for begin in range(0, len(some), CHUNK):
                part = some[begin : begin + CHUNK]
                answers = [(_graded_text(records[number]), questions[_place(records[number])]) for number in part]
                grades |= dict(zip(part, graders[label].grade_all(answers), strict=True))
                progress.advance(bar, len(part))
    return grades


def _graded_text(record: Record) -> str:
    assert record.generated is not None  # those without were not chosen
    return record.generated if record.final is None else record.final


def _keep_first(path: Path) -> None:
    """Keep the records as they are, unless an earlier state is kept already."""
    copy = path / BEFORE
    if not copy.exists():
        draft = path / f".{BEFORE}.new"
        shutil.copyfile(path / RECORDS, draft)
        draft.replace(copy)


def _tell_graders(folder: RunFolder, graders: Mapping[str, Grader]) -> None:
    """Write into ``run.json`` which graders all the scores are of."""
    description = folder.description()
    if description is None:
        raise UserError(f"{folder.path}: run.json has gone. {_MEND}")
    tasks = [
        {**task, "grader": graders[task["label"]].to_dict()} if task["label"] in graders else task
        for task in description["tasks"]
    ]
    folder.describe({**description, "tasks": tasks})
