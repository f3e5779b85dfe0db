"""Records -> tables. Knows no model and never imports torch."""

from __future__ import annotations

from swaa.report.records import Key, Record, read_records
from swaa.report.stats import Proportion, wilson
from swaa.report.table import NOTE, Row, summarise, to_csv, to_markdown, to_rich

__all__ = [
    "NOTE",
    "Key",
    "Proportion",
    "Record",
    "Row",
    "read_records",
    "summarise",
    "to_csv",
    "to_markdown",
    "to_rich",
    "wilson",
]
