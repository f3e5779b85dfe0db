"""Records -> one table per task and length: for the terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from swaa.report.records import Record
from swaa.report.stats import Proportion, mean, wilson

NOTE = (
    "accuracy: samples whose text has everything that the grader looks for; score: the grader's mean, for needles the "
    "share found; forced: samples whose every answer token is the likeliest, given the right ones before it; "
    "[low,high]: 95 % Wilson interval. NLL: nats per answer token. prefill s: seconds per sample; decode ms: "
    "milliseconds per token, which is a decode step of a batch. pairs, KV: query-key pairs computed and KV bytes kept "
    "after prefill, as shares of full attention."
)


@dataclass(frozen=True)
class Row:
    """What one recipe did on one task at one length; None where it was not measured.

    Attributes:
        n: samples.
        accuracy: share of samples that the grader gives everything.
        score: mean of the grader.
        forced: share of samples whose every answer token was the likeliest (teacher-forced).
        nll: mean over samples of the nats per answer token.
        prefill_seconds: mean seconds per sample.
        decode_ms: mean milliseconds per decode step.
        visible_pair_share: mean share of full attention's query-key pairs.
        kv_share: mean share of full attention's KV bytes after prefill.
    """

    recipe: str
    task: str
    length: int
    n: int
    accuracy: Proportion | None
    score: float | None
    forced: Proportion | None
    nll: float | None
    prefill_seconds: float | None
    decode_ms: float | None
    visible_pair_share: float | None
    kv_share: float | None


def summarise(records: Iterable[Record]) -> list[Row]:
    """One row per task, length and recipe, each in the order of its first record."""
    tasks: dict[tuple[str, int], None] = {}
    recipes: dict[str, None] = {}
    cells: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        tasks.setdefault((record.task, record.length))
        recipes.setdefault(record.recipe_hash)
        cells.setdefault((record.task, record.length, record.recipe_hash), []).append(record)
    order = [(task, length, recipe) for task, length in sorted(tasks, key=list(tasks).index) for recipe in recipes]
    return [_row(cells[cell]) for cell in order if cell in cells]


def _row(records: Sequence[Record]) -> Row:
    first = records[0]
    return Row(
        recipe=first.recipe,
        task=first.task,
        length=first.length,
        n=len(records),
        accuracy=_proportion(records, "all_correct"),
        score=mean(record.scores.get("score") for record in records),
        forced=_proportion(records, "forced_exact"),
        nll=mean(record.scores.get("forced_nll") for record in records),
        prefill_seconds=mean(record.timing.get("prefill_seconds") for record in records),
        decode_ms=mean(record.timing.get("decode_ms_per_token") for record in records),
        visible_pair_share=mean(record.cost.get("visible_pair_share") for record in records),
        kv_share=mean(record.cost.get("kv_share") for record in records),
    )


def _proportion(records: Sequence[Record], score: str) -> Proportion | None:
    values = [record.scores[score] for record in records if score in record.scores]
    return wilson(sum(value == 1 for value in values), len(values)) if values else None


@dataclass(frozen=True)
class _Column:
    """A column of the printed tables: its title and how a row fills it."""

    title: str
    cell: Callable[[Row], str]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _interval(share: Proportion | None) -> str:
    return "-" if share is None else f"{_percent(share.value)} [{_percent(share.low)},{_percent(share.high)}]"


COLUMNS = (
    _Column("recipe", lambda row: row.recipe),
    _Column("n", lambda row: str(row.n)),
    _Column("accuracy %", lambda row: _interval(row.accuracy)),
    _Column("score %", lambda row: _percent(row.score)),
    _Column("forced %", lambda row: _interval(row.forced)),
    _Column("NLL", lambda row: _number(row.nll, ".2f")),
    _Column("prefill s", lambda row: _number(row.prefill_seconds, ".2f")),
    _Column("decode ms", lambda row: _number(row.decode_ms, ".0f")),
    _Column("pairs %", lambda row: _percent(row.visible_pair_share)),
    _Column("KV %", lambda row: _percent(row.kv_share)),
)


def to_rich(rows: Sequence[Row]) -> list[Table]:
    """One terminal table per task and length; 80 columns are enough, and names of recipes fold where they must."""
    tables = []
    for title, group in _groups(rows):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("recipe", overflow="fold")
        for column in COLUMNS[1:]:
            width = max(len(column.cell(row)) for row in group)
            words = max(map(len, column.title.split()))
            table.add_column(column.title, justify="right", min_width=max(width, words))
        for row in group:
            table.add_row(*(column.cell(row) for column in COLUMNS))
        tables.append(table)
    return tables


def to_markdown(rows: Sequence[Row]) -> str:
    """One Markdown table per task and length, with the note that says what the columns mean."""
    parts = []
    for title, group in _groups(rows):
        lines = [f"### {title}", "", _markdown_line(column.title for column in COLUMNS)]
        lines.append(_markdown_line("---" if column.title == "recipe" else "---:" for column in COLUMNS))
        lines += [_markdown_line(column.cell(row) for column in COLUMNS) for row in group]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, NOTE]) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """All rows in one CSV table, at full precision, an interval in two columns; an empty cell was not measured."""
    out = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        values = _flat(row)
        if writer is None:
            writer = csv.DictWriter(out, fieldnames=list(values), lineterminator="\n")
            writer.writeheader()
        writer.writerow(values)
    return out.getvalue()


def _flat(row: Row) -> dict[str, object]:
    def ends(name: str, share: Proportion | None) -> dict[str, object]:
        values = (share.value, share.low, share.high) if share else (None, None, None)
        return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))

    return {
        "task": row.task,
        "length": row.length,
        "recipe": row.recipe,
        "n": row.n,
        **ends("accuracy", row.accuracy),
        "score": row.score,
        **ends("forced", row.forced),
        "nll": row.nll,
        "prefill_seconds": row.prefill_seconds,
        "decode_ms_per_token": row.decode_ms,
        "visible_pair_share": row.visible_pair_share,
        "kv_share": row.kv_share,
    }


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.task}, {row.length} tokens", []).append(row)
    return list(groups.items())


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
