"""The record of one sample: one JSON line, written when the sample ends and read by every report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from swaa.jsonlines import read_lines, to_line
from swaa.report.jsonfiles import to_value

RECORDS = "records.jsonl"
"""Of the first process; those of others lie in ``records-1.jsonl`` and so on until the run ends."""


class Key(NamedTuple):
    """What identifies an answer to a sample of a run: what has its key on record is not run again."""

    recipe_hash: str
    task: str
    length: int
    example: str
    generation: int = 0


@dataclass(frozen=True)
class Record:
    """One sample under one recipe.

    Attributes:
        recipe: the recipe's name.
        recipe_hash: SHA-256 of the recipe without its name.
        task: the task's label.
        length: the prompt length that was asked for, in tokens.
        example: the example's id.
        seed: of the examples.
        prompt_tokens: real tokens of the prompt as the model got it.
        answer: the reference answer.
        metadata: facts about the example, from its task; ``evidence_distance``: tokens from the beginning of the
            farthest evidence to the end of the prompt, where that is known.
        generated: the raw text that came, without the end-of-sequence token; None if nothing was generated.
        scores: ``score`` and ``all_correct`` (0 or 1) by the task's grader, ``forced_exact`` (0 or 1) and
            ``forced_nll`` (nats per answer token) of the teacher-forced answer, ``truncated`` (0 or 1): the reply was
            cut before its final answer. Absent where not asked for, or where the grader failed.
        timing: ``prefill_seconds`` (wall time of the batch's prefill divided by its samples), ``decode_ms_per_token``
            (wall time of one decode step of the batch; absent if there was none), ``batch_size``, ``new_tokens``.
        cost: ``visible_pair_share`` and ``kv_share``, fractions of what full attention does and keeps.
        git: commit of the code, with ``+`` where files were altered; None outside a repository.
        versions: of the libraries.
        prompting: how the question was asked.
        generation: number of this answer, of several to one question.
        final: what was graded, where that is not all of ``generated``.
        ending: what ended the answer: ``end`` (its own token), ``stop`` (a stop string) or ``cut`` (the budget).
        verdict: what a judge said: ``correct``, ``wrong`` or ``unparsed``.
        error: why the answer could not be graded.
    """

    recipe: str
    recipe_hash: str
    task: str
    length: int
    example: str
    seed: int
    prompt_tokens: int
    answer: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    generated: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    git: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    prompting: str = "direct"
    generation: int = 0
    final: str | None = None
    ending: str | None = None
    verdict: str | None = None
    error: str | None = None

    @property
    def key(self) -> Key:
        """What identifies the sample."""
        return Key(self.recipe_hash, self.task, self.length, self.example, self.generation)

    def to_json(self) -> str:
        """One line of JSON, without the line's end."""
        return to_line(self)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record that a line holds.

        Raises:
            ValueError: the line is not JSON (``json.JSONDecodeError``) or no record.
            UserError: a field of it is of another type; the field is named.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        for what, names in (("lacks", _NEEDED - values.keys()), ("has a field of no record,", values.keys() - _KNOWN)):
            if names:
                raise ValueError(f"it {what} {', '.join(sorted(names))}")
        return to_value(cls, values, "", mend=_MEND)


_KNOWN = frozenset(each.name for each in fields(Record))
_NEEDED = frozenset(each.name for each in fields(Record) if each.default is MISSING and each.default_factory is MISSING)
_MEND = "Remove this line to run its sample again, or begin anew with --fresh."


def read_records(path: Path) -> list[Record]:
    """The records of a file, in order; none where there is no file.

    A last line without its line end was torn by an interruption and is left out: its sample runs again.

    Raises:
        UserError: another line cannot be read; the line is named, and the field that is wrong.
    """
    return list(read_lines(path, Record.from_json, fault="is no record", mend=_MEND))


def read_all_records(folder: Path) -> list[Record]:
    """The records of a run, of all its processes, in the order they were written; of two with one key, the first."""
    found: dict[Key, Record] = {}
    for path in [folder / RECORDS, *record_parts(folder)]:
        for record in read_records(path):
            found.setdefault(record.key, record)
    return list(found.values())


def record_parts(folder: Path) -> list[Path]:
    """What processes beside the first one wrote, while a run lasts or after it was killed."""
    return sorted(folder.glob("records-*.jsonl"))
