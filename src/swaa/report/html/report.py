"""What a report is of: runs, drawn policies, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from swaa.errors import UserError
from swaa.report.html.figures import Entry, Group, Pictures, make_entries, make_groups, verdict_key
from swaa.report.html.heat import HeatMap, heat_map
from swaa.report.runs import Run


@dataclass(frozen=True)
class Report:
    """Runs to be reported together.

    Attributes:
        runs: by a label that no other run has.
        pictures: of the policies, as far as they could be drawn.
        notices: what the reader must be told besides.
    """

    runs: dict[str, Run]
    pictures: Pictures
    notices: tuple[str, ...] = ()

    @cached_property
    def entries(self) -> list[Entry]:
        """The rows."""
        return make_entries(self.runs, self.pictures)

    @cached_property
    def measure(self) -> str:
        """The score that says right or wrong."""
        return verdict_key(record for run in self.runs.values() for record in run.records)

    @cached_property
    def groups(self) -> list[Group]:
        """Rows that may be compared."""
        return make_groups(self.runs, self.entries, self.measure)

    @cached_property
    def maps(self) -> list[HeatMap]:
        """The heat maps: one for each row and task that has depths."""
        found = []
        for entry in self.entries:
            own = [record for record in self.runs[entry.run].records if record.recipe_hash == entry.info.hash]
            for task in dict.fromkeys(record.task for record in own):
                some = [record for record in own if record.task == task]
                heat = heat_map(entry, task, some, self.measure)
                found += [] if heat is None else [heat]
        return found

    @property
    def num_layers(self) -> dict[str, int]:
        """Of each run's model; 1 where it is not known."""
        return {label: run.info.model.num_layers or 1 for label, run in self.runs.items()}

    @property
    def title(self) -> str:
        """The models and tasks."""
        models = dict.fromkeys(run.info.model.name for run in self.runs.values())
        tasks = dict.fromkeys(task.label for run in self.runs.values() for task in run.info.tasks)
        return f"{', '.join(models)} on {', '.join(tasks)}"

    @property
    def summary(self) -> str:
        """What there is, in a sentence."""
        answers = sum(run.finished for run in self.runs.values())
        examples = len({record.key[1:4] for run in self.runs.values() for record in run.records})
        lengths = sorted({record.length for run in self.runs.values() for record in run.records})
        parts = [
            f"{len(self.entries)} recipes" if len(self.entries) > 1 else "1 recipe",
            f"{examples:,} examples at {', '.join(f'{length:,}' for length in lengths)} tokens",
            f"{answers:,} answers",
        ]
        if len(self.runs) > 1:
            parts.insert(0, f"{len(self.runs)} runs")
        started = sorted(run.info.provenance.started or "" for run in self.runs.values())
        return ", ".join(parts) + (f"; started {started[0][:16].replace('T', ' ')}." if started[0] else ".")


def make_report(runs: Sequence[Run], pictures: Pictures, notices: Sequence[str] = ()) -> Report:
    """The report of these runs.

    Raises:
        UserError: a run is given twice, or none has a record.
    """
    folders = [run.path.resolve() for run in runs]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise UserError(f"RUN: {runs[place].path} is given twice. Name each run once.")
    if not any(run.records for run in runs):
        names = ", ".join(str(run.path) for run in runs)
        raise UserError(f"{names}: there is nothing to report: no sample is on record. Let the run write some first.")
    return Report(dict(zip(_labels(folders), runs, strict=True)), pictures, tuple(notices))


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of their parents as tell them apart."""
    depth = 1
    while True:
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
        depth += 1
