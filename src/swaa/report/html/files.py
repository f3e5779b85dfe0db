"""What is written: the page, and beside it a folder with the table as CSV and the plots as SVG and PNG.

report.html
report.files/
    table.csv               the recipes of every task and length, at full precision
    plot-TITLE.svg, .png    accuracy against time, of each task and length
    depths-TASK.png         the heat maps of a task
    depths-TASK-N.svg       the heat map of row N
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from swaa.errors import UserError, invalid
from swaa.report.html.heat import heat_svg
from swaa.report.html.markup import Markup, element, readable
from swaa.report.html.page import asset, render
from swaa.report.html.plot import drawable, pareto_svg
from swaa.report.html.png import has_matplotlib, heat_png, pareto_png
from swaa.report.html.report import Report
from swaa.report.html.table import table_csv

_VARIABLE = re.compile(r"--([\w-]+): light-dark\((#\w+), #\w+\)")


def check_output(output: Path) -> None:
    """Refuse a name that is none of a page, before anything is read.

    Raises:
        UserError: another ending, a folder, or a folder that is not there.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise invalid("--output", accepted="a file ending in .html", got=str(output), mend="Rename it.")
    if output.is_dir():
        raise UserError(f"--output: {output} is a folder. Name a file in it.")
    if not output.parent.is_dir():
        raise UserError(f"--output: the folder {output.parent} does not exist. Create it first.")


def write_report(report: Report, output: Path) -> list[Path]:
    """Write the page and what stands beside it; the files that were written, the page first.

    Each file appears whole or not at all. PNG files are left out where matplotlib is not installed.

    Raises:
        UserError: as :func:`check_output`, or a file cannot be written.
    """
    check_output(output)
    folder = output.with_suffix(".files")
    try:
        folder.mkdir(exist_ok=True)
        written = [_write(output, render(report)), _write(folder / "table.csv", table_csv(report.groups))]
        written += _plots(report, folder) + _heat_maps(report, folder)
    except OSError as error:
        raise UserError(f"--output: {error.filename or output} cannot be written ({error.strerror}).") from error
    return written


def _plots(report: Report, folder: Path) -> list[Path]:
    written = []
    for group in report.groups:
        rows = drawable(group)
        if rows:
            name = f"plot-{_slug(group.title)}"
            written.append(_write(folder / f"{name}.svg", standalone(pareto_svg(group))))
            written += _png(folder / f"{name}.png", lambda path, g=group, r=rows: pareto_png(g, r, path))  # type: ignore[misc]
    return written


def _heat_maps(report: Report, folder: Path) -> list[Path]:
    written = []
    for task in dict.fromkeys(heat.task for heat in report.maps):
        maps = [heat for heat in report.maps if heat.task == task]
        name = f"depths-{_slug(task)}"
        written += [_write(folder / f"{name}-{heat.entry.number}.svg", standalone(heat_svg(heat))) for heat in maps]
        written += _png(folder / f"{name}.png", lambda path, m=maps: heat_png(m, path))  # type: ignore[misc]
    return written


def standalone(svg: Markup) -> str:
    """An SVG of the page as a file of its own, in the light colours, with its style inside."""
    colours = dict(_VARIABLE.findall(asset("palette.css")))
    style = re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], asset("plots.css"))
    style = re.sub(r"/\*.*?\*/\s*", "", style, flags=re.DOTALL)
    paper = element("rect", width="100%", height="100%", fill=colours["paper"])
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{element("style", Markup(style))}{paper}{rest}\n'


def _png(path: Path, draw: Callable[[Path], None]) -> list[Path]:
    if not has_matplotlib():
        return []
    draw(path)
    return [path]


def _slug(title: str) -> str:
    """``title`` as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80] or "all"


def _write(path: Path, text: str) -> Path:
    """Write a file through a new one beside it, so that a reader never finds half of it."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(readable(text), encoding="utf-8")
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    return path
