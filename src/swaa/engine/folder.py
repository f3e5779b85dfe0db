"""The folder of a run: what it ran, the records so far, the tables. It can be continued after any interruption.

experiment.yaml   the experiment, complete; ``swaa run`` reads it again
run.json          what the run is, for reports: model, recipes, tasks, provenance, what was left out, whether it ended
samples.jsonl     the prompts as the model got them, one line per example and way of asking
records.jsonl     one line per answer, appended and flushed as the sample's batch ends
records-1.jsonl   the same of a second process, until the run ends
table.md, .csv    written when the run ends
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swaa.config import Experiment, load_experiment
from swaa.engine.batch import Sample
from swaa.engine.own_code import own_code
from swaa.engine.perplexity_folder import KEY_TOKENS
from swaa.engine.resumable import MEND, ResumableFolder, changed
from swaa.errors import UserError
from swaa.report import Key, Record, Row, find_baseline, summarise, to_csv, to_markdown
from swaa.report.jsonfiles import read_lines
from swaa.report.records import RECORDS, read_all_records, record_parts
from swaa.report.runs import PERPLEXITY, RUN, SAMPLES, Stretch, read_info

EXPERIMENT = "experiment.yaml"
TABLES = {"table.md": to_markdown, "table.csv": to_csv}


class RunFolder(ResumableFolder):
    """The folder ``experiment.output``, for a run or for the continuation of one; a context that locks it.

    Entering makes the folder, or goes on in it; ``fresh`` deletes what a former run wrote there.

    Raises:
        UserError: the folder cannot be made, another process runs in it, or it holds records of an experiment that
            differs in a way that would mix incomparable numbers; the differences are named.
    """

    def __init__(self, experiment: Experiment, *, fresh: bool = False) -> None:
        super().__init__(experiment.output)
        self._experiment = experiment
        self._fresh = fresh

    def records(self) -> list[Record]:
        """The records so far, in the order they were written; of two with one key, the first."""
        return read_all_records(self.path)

    def finished(self) -> set[Key]:
        """The keys of the samples on record."""
        return {record.key for record in self.records()}

    def writer(self, rank: int = 0) -> RecordWriter:
        """What adds the records of one process of several."""
        return RecordWriter(self.path / (f"records-{rank}.jsonl" if rank else RECORDS))

    def append(self, records: Iterable[Record]) -> None:
        """Add records of the only process."""
        self.writer().append(records)

    def replace_records(self, records: Iterable[Record]) -> None:
        """Write all records anew, in this order; the file is there whole, or is as it was."""
        self._replace_lines(RECORDS, (record.to_json() for record in records))
        for part in record_parts(self.path):
            part.unlink()

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Write the prompts, as the model gets them."""
        self._replace_lines(SAMPLES, map(_sample_line, samples))

    def description(self) -> dict[str, Any] | None:
        """What :meth:`describe` wrote; None where there is nothing, or what somebody else wrote."""
        try:
            values = json.loads((self.path / RUN).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return values if isinstance(values, dict) else None

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write what the run is; the code of recipes that are no longer asked for, and may be again, stays known."""
        code = {**self._code(), **description.get("code", {})}
        description = {**description, "code": code}
        self._replace(RUN, f"{json.dumps(description, ensure_ascii=False, indent=1)}\n".encode())

    def check_graders(self) -> None:
        """Refuse to add to records that another grader has graded since (``swaa grade --all --grader``).

        Raises:
            UserError: the graders that ``run.json`` names are not the tasks' own.
        """
        description = self.description()
        known = {} if description is None else {task["label"]: task["grader"] for task in description["tasks"]}
        for task in self._experiment.tasks:
            was, now = known.get(task.label), task.grader.to_dict()
            if was not in (None, now) and self.records():
                raise UserError(
                    f"{self.path}: the answers to {task.label} were graded again by {was}, and the experiment says "
                    f"{now}. Grade them back with `swaa grade --all {self.path}`, or choose another folder."
                )

    def check_code(self) -> None:
        """Refuse to add to answers of policies whose own code was another one.

        Raises:
            UserError: ``visible`` of a plugin's policy, say, has changed since; the policy is named.
        """
        if not self.records():
            return
        was, now = self._code(), own_code(self._experiment.recipes)
        what = "results of a policy as it was before its code changed"
        self._refuse(
            (f"{name}: the code of this class has changed" for name in now if was.get(name, now[name]) != now[name]),
            what=what,
        )

    def _code(self) -> dict[str, str]:
        code = (self.description() or {}).get("code")
        return code if isinstance(code, dict) else {}

    def end(self, records: Sequence[Record]) -> list[Row]:
        """Bring the files into their last form, and write the tables of these records; the rows.

        Rows are compared with the model as it is, under full attention, if the run has it.
        """
        if record_parts(self.path):
            self.replace_records(self.records())
        description = self.description()
        if description is not None:
            self.describe({**description, "status": "finished"})
        return self.write_tables(records)

    def write_tables(self, records: Sequence[Record]) -> list[Row]:
        """Write the tables beside the records; their rows."""
        rows = summarise(records, baseline=self._baseline(), stretches=self._stretches())
        for name, text in TABLES.items():
            self._replace(name, text(rows).encode())
        return rows

    def _baseline(self) -> str | None:
        if self.description() is None:
            return None
        found = find_baseline(read_info(self.path).recipes)
        return None if found is None else found.hash

    def _stretches(self) -> list[Stretch]:
        known = {recipe.hash for recipe in self._experiment.recipes}
        return [one for one in read_lines(Stretch, self.path / PERPLEXITY) if one.recipe_hash in known]

    def _begin(self) -> None:
        if self._fresh:
            parts = (part.name for part in record_parts(self.path))
            self._delete(EXPERIMENT, RECORDS, SAMPLES, RUN, KEY_TOKENS, PERPLEXITY, *TABLES, *parts)
        self._drop_torn_line(RECORDS)
        self._check_same()
        if record_parts(self.path):  # of processes that were killed
            self.replace_records(self.records())
        self._replace(EXPERIMENT, self._experiment.to_yaml().encode())

    def _check_same(self) -> None:
        if not self.records():
            return
        if not (self.path / EXPERIMENT).exists():
            raise UserError(f"{self.path} has records, and no {EXPERIMENT} to say of what. {MEND}")
        self._refuse(
            differences(load_experiment(self.path / EXPERIMENT), self._experiment),
            what="results of a different experiment",
        )


class RecordWriter:
    """Adds records to a file; each line reaches the operating system whole, before the next is begun.

    Args:
        path: the file; it is made with the first record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, records: Iterable[Record]) -> None:
        """Add records."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = os.open(self._path, flags, 0o644)
        try:
            for record in records:
                line = f"{record.to_json()}\n".encode()
                while line:
                    line = line[os.write(file, line) :]
        finally:
            os.close(file)


def _sample_line(sample: Sample) -> str:
    question = sample.example.prompt
    begin = sample.prompt.text.find(question)
    values = {
        "task": sample.task.label,
        "length": sample.length,
        "example": sample.example.id,
        "prompting": sample.prompting.name,
        "prompt": sample.prompt.text,
        "question": None if begin >= 0 else question,  # it may be a book, and stands in the prompt
        "question_span": None if begin < 0 else [begin, begin + len(question)],
        "prompt_tokens": len(sample.prompt.ids),
        "answer": sample.example.answer,
        "references": list(sample.example.references),
        # offsets in metadata are those of the question, which stands somewhere in the prompt
        "metadata": {**sample.example.metadata, "prompt_start": begin},
    }
    return json.dumps(values, ensure_ascii=False)


def differences(before: Experiment, now: Experiment) -> list[str]:
    """What changed between two experiments that makes their records incomparable, a line each.

    The model, the seed, the scorings, and what stands behind the name of a recipe. Adding or dropping recipes, tasks,
    lengths and examples is no such change, nor is the batch size: records are of single samples.
    """
    pairs: list[tuple[str, object, object]] = [
        *((f"model.{name}", getattr(before.model, name), getattr(now.model, name)) for name in vars(now.model)),
        ("seed", before.seed, now.seed),
        ("scoring", sorted(before.scoring), sorted(now.scoring)),
    ]
    recipes = {recipe.name: recipe for recipe in before.recipes}
    for recipe in now.recipes:
        old = recipes.get(recipe.name, recipe)
        if old.hash != recipe.hash:
            was, new = vars(old), vars(recipe)
            pairs += [(f"recipe {recipe.name!r}: {key}", was[key], new[key]) for key in new]
    return changed(pairs)
