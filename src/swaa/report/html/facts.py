"""The sections that are read: what was left out, where the numbers come from, what the columns mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from swaa.report.html.markup import Markup, element, join
from swaa.report.html.sections import section
from swaa.report.html.table import Column
from swaa.report.runs import Dropped, Run

_NAMED = 200
"""So many dropped samples of a task are named."""


def dropped_section(runs: Mapping[str, Run]) -> Markup | None:
    """What length filters left out; None where nothing was."""
    rows = []
    for label, run in runs.items():
        for dropped in run.dropped:
            if dropped.offered > dropped.kept or dropped.left_out:
                rows.append(_dropped(label, dropped, several=len(runs) > 1))
    if not rows:
        return None
    lead = "Examples that the tasks offered and that are in no figure above."
    return section("dropped", "Dropped samples", *rows, lead=lead)


def _dropped(label: str, dropped: Dropped, *, several: bool) -> Markup:
    where = f"{dropped.task} ({label})" if several else dropped.task
    parts = [f"{dropped.kept:,} of {dropped.offered:,} examples asked"]
    if dropped.too_long:
        parts.append(f"{len(dropped.too_long):,} longer than {dropped.length_limit:,} tokens")
    if dropped.full:
        parts.append(f"{dropped.full:,} not needed")
    parts += [f"{count:,} {reason}" for reason, count in dropped.left_out.items()]
    told = element("p", element("b", where), ": ", "; ".join(parts), ".")
    if not dropped.too_long:
        return told
    named = [f"{one.example} ({one.tokens:,})" for one in dropped.too_long[:_NAMED]]
    if len(dropped.too_long) > _NAMED:
        named.append(f"and {len(dropped.too_long) - _NAMED:,} more")
    names = element("details", element("summary", "Their names, and tokens"), element("p", ", ".join(named)))
    return join(told, names)


def provenance_section(runs: Mapping[str, Run]) -> Markup:
    """Model, code, machine, command and settings of every run."""
    parts: list[object] = []
    for label, run in runs.items():
        parts.append(element("h3", label))
        facts = [(name, value) for name, value in _provenance(run) if value not in (None, "")]
        parts.append(
            element("dl", *(join(element("dt", name), element("dd", value)) for name, value in facts), class_="about")
        )
        parts.append(_recipes(run))
    return section("provenance", "Provenance", *parts)


def _provenance(run: Run) -> list[tuple[str, object]]:
    info, origin = run.info, run.info.provenance
    model, machine = info.model, origin.hardware
    size = None if model.num_layers is None else f"{model.num_layers} layers, {model.num_heads} heads"
    context = None if model.context is None else f"context {model.context:,} tokens"
    memory = None if machine.memory_bytes is None else f"{machine.memory_bytes / 1e9:.0f} GB of memory"
    cores = None if machine.cores is None else f"{machine.cores} cores"
    graders = [
        f"{task.label}: {json.dumps(dict(task.grader), ensure_ascii=False)}" for task in info.tasks if task.grader
    ]
    return [
        ("folder", str(run.path)),
        ("status", f"{info.status}, {run.finished:,} of {info.asked:,} answers"),
        ("model", _listed(model.name, model.dtype, model.device, size, context)),
        ("examples", f"{info.num_examples} a task and length, seed {info.seed}"),
        ("lengths", ", ".join(f"{length:,}" for length in info.lengths) + " tokens"),
        ("scoring", ", ".join(info.scoring)),
        ("graders", join(*graders, between=element("br"))),
        ("machine", _listed(machine.processor, cores, machine.gpu, memory)),
        ("code", f"git {origin.git}" if origin.git else None),
        ("versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())),
        ("command", element("code", origin.command) if origin.command else None),
        ("started", origin.started),
    ]


def _listed(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _recipes(run: Run) -> Markup:
    """What stands behind the names of the recipes."""
    heads = element(
        "tr",
        *(element("th", name, scope="col") for name in ("recipe", "policy", "asked", "tuning", "decoding", "hash")),
    )
    rows = [
        element(
            "tr",
            element("th", recipe.name, scope="row"),
            element("td", element("code", recipe.policy)),
            element("td", recipe.prompting.replace("_", " ")),
            element("td", recipe.fine_tuning or "none"),
            element(
                "td",
                ", ".join(f"{name} {value}" for name, value in recipe.decoding.items() if value not in ([], "", None)),
            ),
            element("td", element("code", recipe.hash[:12])),
        )
        for recipe in run.info.recipes
    ]
    table = element("table", element("thead", heads), element("tbody", *rows))
    scroll = element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Recipes, in full")
    return element("details", element("summary", f"The {len(rows)} recipes in full"), scroll)


def notes_section(columns: Sequence[Column]) -> Markup:
    """What the columns mean."""
    pairs = [join(element("dt", column.title), element("dd", f"{column.meaning}.")) for column in columns]
    return section("notes", "What the columns mean", element("dl", *pairs, class_="about"))
