"""The sections of the page that are looked at: plot, table, heat maps, masks, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swaa.report.explain import index_runs
from swaa.report.html.figures import FAMILIES, Entry, Group, Pictures
from swaa.report.html.heat import HeatMap, heat_svg, size_of
from swaa.report.html.marks import SHAPE_WORDS, glyph, glyph_of
from swaa.report.html.markup import Markup, element, embed, join
from swaa.report.html.masks import layer_strip, mask_svg
from swaa.report.html.plot import NARROW, drawable, pareto_svg
from swaa.report.html.samples import VERDICTS
from swaa.report.html.table import Column, table


def section(identity: str, title: str, *parts: object, lead: str | None = None) -> Markup:
    """A section of the page; ``lead`` says how to read it."""
    head = element("h2", title)
    return element("section", head, element("p", lead) if lead else None, *parts, id=identity)


def plot_section(groups: Sequence[Group]) -> Markup | None:
    """Accuracy against time; None where no group has both."""
    drawn = [(number, group) for number, group in enumerate(groups) if drawable(group)]
    if not drawn:
        return None
    lines = any(group.lines for _, group in drawn)
    lead = "Up is better, left is faster; uprights are 95 % intervals. "
    if lines:
        lead += "The line runs from naive sliding-window attention to full attention: what lies above it adapts well."
    else:
        lead += "There is no line: it takes full attention and a plain sliding window, both asked the same way."
    parts = [element("div", _plot(group), data_group=number) for number, group in drawn]
    return section("plot", "Accuracy against time", *parts, _keys(groups), lead=lead)


def _plot(group: Group) -> Markup:
    items = [
        element(
            "li",
            element("span", row.entry.number, class_="no"),
            glyph_of(row.entry),
            element("span", row.entry.info.name, _run_of(row.entry, group)),
            data_row=row.entry.number,
        )
        for row in group.rows
    ]
    hint = "Point at a mark, or reach it with the tabulator, for its name and figures."
    plots = join(pareto_svg(group, class_="plot wide"), pareto_svg(group, NARROW, class_="plot narrow"))
    left = element("div", plots, element("p", hint, class_="readout"))
    return element("div", left, element("ol", *items, class_="legend"), class_="pareto")


def _run_of(entry: Entry, group: Group) -> Markup | None:
    several = len({row.entry.run for row in group.rows}) > 1
    return element("span", f" ({entry.run})", class_="quiet") if several else None


def _keys(groups: Sequence[Group]) -> Markup:
    """What colours, shapes and filling mean, of those that occur."""
    entries = [row.entry for group in groups for row in group.rows]
    families = {entry.family for entry in entries}
    promptings = {entry.info.prompting for entry in entries}
    pairs = [(glyph("direct", family, filled=True), words) for family, words in FAMILIES.items() if family in families]
    if len(promptings) > 1:
        pairs += [
            (glyph(name, "other", filled=False), words) for name, words in SHAPE_WORDS.items() if name in promptings
        ]
    if any(entry.tuned for entry in entries):
        pairs.append((glyph("direct", "other", filled=True), "filled: fine-tuned"))
    items = [element("li", drawn, words) for drawn, words in pairs]
    if any(line.full.entry.info.prompting != "direct" for group in groups for line in group.lines):
        items.append(element("li", "dashed line: not asked directly"))
    return element("ul", *items, class_="keys")


def table_section(groups: Sequence[Group], columns: Sequence[Column]) -> Markup:
    """The table of each group."""
    lead = "A head sorts by its column, and once more the other way round. Every row keeps its number."
    parts = [
        element("div", element("h3", group.title), table(group, columns), data_group=number)
        for number, group in enumerate(groups)
    ]
    return section("recipes", "Recipes", *parts, lead=lead)


def heat_section(maps: Sequence[HeatMap]) -> Markup | None:
    """The heat maps, task by task; None where no task says where its evidence stands."""
    if not maps:
        return None
    lead = (
        "Accuracy, from 0 to 1, by length of the prompt and depth of the farthest evidence: 0 is the prompt's "
        "beginning, 1 its end, next to the question. n: examples."
    )
    if any(heat.edges for heat in maps):
        lead += " Below the heavy line, evidence stands inside the window of the prompt's last token."
    ramp = element("div", "0", element("i"), "1", class_="ramp", aria_hidden="true")
    parts: list[object] = [ramp]
    tasks = list(dict.fromkeys(heat.task for heat in maps))
    for task in tasks:
        own = [heat for heat in maps if heat.task == task]
        width = max(140, max(size_of(heat)[0] for heat in own))
        figures = [element("figure", _caption(heat), element("div", heat_svg(heat))) for heat in own]
        parts.append(element("h3", task) if len(tasks) > 1 else None)
        parts.append(element("div", *figures, class_="wall", style=f"--width: min({width}px, 100%)"))
    return section("depths", "Length and depth", *parts, lead=lead)


def _caption(heat: HeatMap) -> Markup:
    entry = heat.entry
    return element("figcaption", glyph_of(entry), f" {entry.number} {entry.info.name}")


def mask_section(entries: Sequence[Entry], pictures: Pictures, num_layers: Mapping[str, int]) -> Markup | None:
    """The masks of every policy, once for all rows that share it; None where none could be drawn."""
    policies: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        key = entry.info.policy, num_layers[entry.run]
        if pictures.get(key):
            policies.setdefault(key, []).append(entry)
    if not policies:
        return None
    lead = (
        "Which earlier tokens (to the right) a token (downwards) sees, drawn on a text short enough to look at. "
        "Beneath the dashed rule tokens are generated. Paler: a part of the tokens of a cell."
    )
    keys = [("prefill", "visible, prompt"), ("decode", "visible, decoding"), ("hidden", "hidden by the policy")]
    items = [
        element("li", element("i", class_="swatch", style=f"background: var(--{key})"), words) for key, words in keys
    ]
    parts = [_policy(policy, pictures[policy, layers], layers, who) for (policy, layers), who in policies.items()]
    keys_shown, shown = element("ul", *items, class_="keys"), element("div", *parts, class_="policies")
    return section("masks", "Masks, layer by layer", keys_shown, shown, lead=lead)


def _policy(policy: str, drawn: Sequence[Mapping[str, Any]], num_layers: int, entries: Sequence[Entry]) -> Markup:
    names = [join(glyph_of(entry), f" {entry.number} {entry.info.name}") for entry in entries]
    figures = []
    for picture in drawn:
        layers = f"layers {index_runs(picture['layers'])}"
        if picture["heads"] is not None:
            layers += f", heads {index_runs(picture['heads'])}"
        same = picture["prefill"] == picture["decode"]
        phases = [("both phases", "prefill")] if same else [("prompt", "prefill"), ("decoding", "decode")]
        lines = [join(element("br"), f"{words}: ", _expression(picture[key])) for words, key in phases]
        told = f"{layers}: {picture['prefill']}, decoding {picture['decode']}"
        caption = element("figcaption", element("b", layers), *lines)
        figures.append(element("figure", mask_svg(picture, told), caption))
    strip = layer_strip(drawn, num_layers)
    return element(
        "div",
        element("h3", join(*names, between=", "), class_="who"),
        element("p", _expression(policy)),
        strip,
        element("div", *figures, class_="masks"),
        class_="policy",
    )


def _expression(policy: str) -> Markup:
    """A policy as code that breaks where a method is called."""
    calls = policy.split(").")
    return element("code", join(*calls, between=").<wbr>"))


def sample_section(data: Mapping[str, Any]) -> Markup:
    """The browser's frame and its data; ``page.js`` does the rest."""
    used = {record[3] for record in data["records"]}
    rows = [(place, f"{row['number']} {row['name']}") for place, row in enumerate(data["rows"])]
    verdicts = [(name, words) for name, words in VERDICTS.items() if name in used]
    fields = [
        _select("recipe", "Recipe", rows),
        _select("verdict", "Verdict", verdicts),
        _select("task", "Task", [(task, task) for task in data["tasks"]]),
        element("label", "Search in answers and prompts", element("input", type="search", name="search")),
    ]
    notices = [element("p", notice, class_="quiet") for notice in data["notices"]]
    return section(
        "samples",
        "Samples",
        *notices,
        element("form", *fields, id="filters", class_="filters", hidden=True),
        element("p", "The browser of samples needs JavaScript.", id="found", class_="found", role="status"),
        element("div", id="list"),
        element("button", "Show more", id="more", class_="more", type="button", hidden=True),
        element("script", embed(data), id="data", type="application/json"),
    )


def _select(name: str, title: str, options: Sequence[tuple[object, str]]) -> Markup:
    items = [element("option", "all", value=""), *(element("option", words, value=value) for value, words in options)]
    return element("label", title, element("select", *items, name=name))
