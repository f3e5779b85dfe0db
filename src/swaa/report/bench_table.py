"""A benchmark's result -> tables: for the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from swaa import markdown
from swaa.report.bench import Log, Summary

NOTE = (
    "prefill: seconds from the prompt to the first new token; step: milliseconds of a decode step; request: seconds of "
    "prefill and decode steps; medians over runs. x: full attention's time over this row's. predicted: what `swaa "
    "explain` says beforehand; off: predicted over measured time, both as shares of full attention's. ideal: if "
    "attention cost exactly its share of visible pairs. KV: keys and values held after the prompt. peak: memory "
    "beyond what was in use before the request; total: with weights and libraries."
)


@dataclass(frozen=True)
class Result:
    """A benchmark, summarised.

    Attributes:
        title: model, dtype, new tokens.
        rows: the rows' names, in order.
        summaries: see :func:`swaa.report.bench.summarise`.
        log: sessions, checks and raw timings.
        left_out: why rows are missing, by name.
        benchmark: the configuration, as plain data.
        machine: the profile fitted to the timings, as plain data; None where full or floor is missing.
        predicted_with: the name of the profile that predictions come from.
    """

    title: str
    rows: tuple[str, ...]
    summaries: tuple[Summary, ...]
    log: Log
    left_out: Mapping[str, str] = field(default_factory=dict)
    benchmark: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] | None = None
    predicted_with: str = ""

    @property
    def sound(self) -> bool:
        """Was every row that was compared with the dense mask equal to it?"""
        latest = {check.row_hash: check.equal for check in self.log.checks}
        return all(latest.values())


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Summary], str]


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else format(value * scale, form)


def _times(ratio: float | None) -> str:
    """How many times faster than full attention."""
    return f"{1 / ratio:.2f}x" if ratio else "-"


def _off(row: Summary) -> str:
    """Predicted over measured."""
    if row.request_ratio is None or row.expected.request is None or row.row == "full":
        return "-"
    return f"{100 * (row.expected.request / row.request_ratio - 1):+.0f} %"


COLUMNS = (
    _Column("row", lambda row: row.row),
    _Column("n", lambda row: str(row.n)),
    _Column("prefill s", lambda row: _number(row.prefill, ".2f")),
    _Column("x", lambda row: _times(row.prefill_ratio)),
    _Column("step ms", lambda row: _number(row.step, ".1f", 1e3)),
    _Column("x", lambda row: _times(row.step_ratio)),
    _Column("request s", lambda row: _number(row.request, ".2f")),
    _Column("min", lambda row: _number(row.request_min, ".2f")),
    _Column("x", lambda row: _times(row.request_ratio)),
    _Column("predicted", lambda row: _times(row.expected.request)),
    _Column("off", _off),
    _Column("ideal", lambda row: _times(row.ideal_ratio)),
    _Column("KV MB", lambda row: _number(row.kv_bytes, ".2f", 1e-6)),
    _Column("peak MB", lambda row: _number(row.extra_bytes, ".0f", 1e-6)),
    _Column("total MB", lambda row: _number(row.peak_bytes, ".0f", 1e-6)),
)


def to_rich(result: Result) -> list[Table]:
    """One terminal table per length."""
    tables = []
    for length, group in _groups(result.summaries):
        title = f"{result.title}, {length:,} tokens"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("row", overflow="fold")
        for column in COLUMNS[1:]:
            table.add_column(column.title, justify="right", no_wrap=True)
        for row in group:
            table.add_row(*(column.cell(row) for column in COLUMNS))
        tables.append(table)
    return tables


def to_markdown(result: Result) -> str:
    """Machine, checks, one table per length, and the note that says what the columns mean."""
    parts = [f"# {result.title}", "\n".join(facts(result))]
    for length, group in _groups(result.summaries):
        rules = ["---" if column.title == "row" else "---:" for column in COLUMNS]
        rows = [[column.cell(row) for column in COLUMNS] for row in group]
        parts += [f"## {length:,} tokens", markdown.table([column.title for column in COLUMNS], rows, rules)]
    return "\n\n".join([*parts, NOTE]) + "\n"


def facts(result: Result) -> list[str]:
    """Lines on the machine, what was compared for equality and what was left out."""
    lines = [_session(number, session) for number, session in enumerate(result.log.sessions)]
    lines += [f"- {check.row}: {check}" for check in result.log.checks]
    lines += [f"- {name}: left out: {reason}" for name, reason in result.left_out.items()]
    return [*lines, f"- predicted with: {result.predicted_with}"]


def _session(number: int, session: Mapping[str, Any]) -> str:
    where = session.get("gpu") or f"{session['cpu']}, {session['cores']} cores, {session['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    load = "" if session.get("load") is None else f", load {session['load']} at the start"
    return f"- session {number}: {session['started']}, {where}{load}; commit {session['git']}; {versions}"


def to_csv(result: Result) -> str:
    """All summaries at full precision; an empty cell was not measured."""
    out = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in result.summaries:
        values = dataclasses.asdict(row)
        values |= {f"expected_{name}": value for name, value in values.pop("expected").items()}
        if writer is None:
            writer = csv.DictWriter(out, fieldnames=list(values), lineterminator="\n")
            writer.writeheader()
        writer.writerow(values)
    return out.getvalue()


def to_json(result: Result) -> str:
    """Everything, raw timings included."""
    return json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False) + "\n"


def _groups(summaries: Sequence[Summary]) -> list[tuple[int, list[Summary]]]:
    groups: dict[int, list[Summary]] = {}
    for row in summaries:
        groups.setdefault(row.length, []).append(row)
    return list(groups.items())
