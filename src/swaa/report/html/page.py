"""The page as a whole: one file with its style, its script and its data, that asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from swaa.report.html.facts import dropped_section, notes_section, provenance_section
from swaa.report.html.figures import Group, warnings
from swaa.report.html.markup import Markup, element
from swaa.report.html.report import Report
from swaa.report.html.samples import browser_data
from swaa.report.html.sections import heat_section, mask_section, plot_section, sample_section, table_section
from swaa.report.html.table import columns_of


def asset(name: str) -> str:
    """A file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def render(report: Report) -> str:
    """The page."""
    columns = columns_of(report.groups)
    sections = [
        plot_section(report.groups),
        table_section(report.groups, columns),
        heat_section(report.maps),
        mask_section(report.entries, report.pictures, report.num_layers),
        sample_section(browser_data(report.runs, report.entries, report.measure)),
        dropped_section(report.runs),
        provenance_section(report.runs),
        notes_section(columns),
    ]
    body = element(
        "body",
        element("header", *_header(report, [part for part in sections if part])),
        element("main", _chooser(report.groups), *sections),
        element("footer", "Written by swaa report. This page is one file and loads nothing."),
        _script(),
    )
    return "<!doctype html>\n" + element("html", _head(report), body, lang="en") + "\n"


def _head(report: Report) -> Markup:
    style = "\n".join(asset(name) for name in ("palette.css", "style.css", "plots.css"))
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_security()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{report.title} - swaa report"),
        element("style", Markup(style)),
    )


def _script() -> Markup:
    return element("script", Markup(asset("page.js")))


def _security() -> str:
    """Nothing is loaded, and no script runs but the page's own, whatever texts of models may hold."""
    digest = base64.b64encode(hashlib.sha256(asset("page.js").encode()).digest()).decode()
    rules = ("default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'", "form-action 'none'")
    return "; ".join(rules)


def _header(report: Report, sections: Sequence[Markup]) -> list[Markup]:
    toggle = element("button", "Colours", id="theme", class_="theme", type="button", hidden=True)
    parts = [
        element("div", element("h1", report.title), toggle, class_="top"),
        element("p", report.summary, class_="summary"),
    ]
    told = warnings(report.runs, report.groups, report.entries) + list(report.notices)
    if told:
        parts.append(element("ul", *(element("li", line) for line in told), class_="warnings"))
    return [*parts, _navigation(sections)]


def _navigation(sections: Sequence[Markup]) -> Markup:
    names = {
        "plot": "Plot",
        "recipes": "Recipes",
        "depths": "Length and depth",
        "masks": "Masks",
        "samples": "Samples",
        "dropped": "Dropped",
        "provenance": "Provenance",
        "notes": "Columns",
    }
    there = [name for name in names if any(part.startswith(f'<section id="{name}"') for part in sections)]
    return element("nav", *(element("a", names[name], href=f"#{name}") for name in there), aria_label="Sections")


def _chooser(groups: Sequence[Group]) -> Markup | None:
    """The choice of a task and length, for plot and table; without JavaScript all are shown."""
    if len(groups) < 2:
        return None
    options = [element("option", group.title, value=number) for number, group in enumerate(groups)]
    label = element("label", "Plot and table of ", element("select", *options, id="group"))
    return element("div", label, class_="chooser", hidden=True)
