"""The folder of a run: what it ran, the records so far, the tables. It can be continued after any interruption.

experiment.yaml   the experiment, complete; ``swaa run`` reads it again
records.jsonl     one line per sample, appended and flushed as the sample's batch ends
table.md, .csv    written when the run ends
"""

from __future__ import annotations

from collections.abc import Iterable

from swaa.config import Experiment, load_experiment
from swaa.engine.resumable import MEND, ResumableFolder, changed
from swaa.errors import UserError
from swaa.report import Key, Record, Row, read_records, to_csv, to_markdown

EXPERIMENT = "experiment.yaml"
RECORDS = "records.jsonl"
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
        """The records so far, in the order they were written."""
        return read_records(self.path / RECORDS)

    def finished(self) -> set[Key]:
        """The keys of the samples on record."""
        return {record.key for record in self.records()}

    def append(self, records: Iterable[Record]) -> None:
        """Add records, each line flushed to the operating system before the next is begun."""
        with (self.path / RECORDS).open("a", encoding="utf-8") as file:
            for record in records:
                file.write(record.to_json() + "\n")
                file.flush()

    def write_tables(self, rows: list[Row]) -> None:
        """Write the tables beside the records."""
        for name, text in TABLES.items():
            (self.path / name).write_text(text(rows), encoding="utf-8")

    def _begin(self) -> None:
        if self._fresh:
            self._delete(EXPERIMENT, RECORDS, *TABLES)
        self._drop_torn_line(RECORDS)
        self._check_same()
        (self.path / EXPERIMENT).write_text(self._experiment.to_yaml(), encoding="utf-8")

    def _check_same(self) -> None:
        if not self.records():
            return
        if not (self.path / EXPERIMENT).exists():
            raise UserError(f"{self.path} has records, and no {EXPERIMENT} to say of what. {MEND}")
        self._refuse(
            differences(load_experiment(self.path / EXPERIMENT), self._experiment),
            what="results of a different experiment",
        )


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
