"""Records -> tables. Knows no model and never imports torch."""

from __future__ import annotations

from swaa.report.records import Key, Record, read_records
from swaa.report.rows import Row, summarise
from swaa.report.runs import Run, find_baseline, read_run
from swaa.report.stats import Estimate, Proportion, wilson
from swaa.report.table import NOTE, note, to_csv, to_markdown, to_rich

__all__ = [
    "NOTE",
    "Estimate",
    "Key",
    "Proportion",
    "Record",
    "Row",
    "Run",
    "find_baseline",
    "note",
    "read_records",
    "read_run",
    "summarise",
    "to_csv",
    "to_markdown",
    "to_rich",
    "wilson",
]
