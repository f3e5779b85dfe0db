"""Runs -> one HTML page that needs nothing else, with its plots and its table as files beside it."""

from __future__ import annotations

from swaa.report.html.files import check_output, write_report
from swaa.report.html.png import has_matplotlib
from swaa.report.html.report import Report, make_report

__all__ = ["Report", "check_output", "has_matplotlib", "make_report", "write_report"]
