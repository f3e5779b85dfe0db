"""``swaa ls`` and ``swaa fetch``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from swaa import markdown
from swaa.cli.common import add_plugins, make_console
from swaa.errors import invalid

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers


def add_ls(subparsers: Subparsers) -> None:
    """``swaa ls policies|scores|scorers|tasks|models``"""
    parser = subparsers.add_parser("ls", help="list what there is")
    parser.add_argument("what", choices=sorted(LISTINGS))
    parser.add_argument("--markdown", action="store_true", help="policies as the tables of docs/policies.md")
    add_plugins(parser)
    parser.set_defaults(handler=ls)


def ls(args: argparse.Namespace) -> int:
    """Print a listing, one name a line with what it is."""
    from rich.table import Table

    from swaa.policies import load_plugin

    for plugin in args.plugin:
        load_plugin(plugin)
    if args.markdown:
        print(policies_as_markdown(args.what))
        return 0
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for line in LISTINGS[args.what]():
        table.add_row(*line)
    make_console().print(table, highlight=False, markup=False)
    return 0


def list_policies() -> list[tuple[str, ...]]:
    """Name, meaning and an example of each policy, then of each pattern (a function that composes policies)."""
    from swaa.policies import zoo_entries

    ordered = sorted(zoo_entries(), key=lambda entry: (entry.kind != "policy", entry.name))
    return [
        (entry.name, entry.kind, entry.summary.replace("`", ""), *(example.text for example in entry.examples[:1]))
        for entry in ordered
    ]


def policies_as_markdown(what: str) -> str:
    """Two tables, of policies and of patterns: how each is called, what it shows, and its papers.

    Raises:
        UserError: something else than policies was asked for.
    """
    from swaa.policies import zoo_entries

    if what != "policies":
        raise invalid("--markdown", accepted="'ls policies'", got=f"ls {what}", mend="Leave --markdown out.")
    tables = []
    for kind, formula in (("policy", "visible iff (always with `k <= q`)"), ("pattern", "comes to")):
        rows = []
        for entry in zoo_entries():
            if entry.kind == kind:
                papers = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in entry.papers)
                rows.append(
                    (f"`{entry.signature}`", f"`{entry.formula}`" if entry.formula else "", entry.summary, papers)
                )
        tables.append(markdown.table([kind, formula, "", ""], rows))
    return "\n\n".join(tables)


def list_scores() -> list[tuple[str, ...]]:
    """Name, meaning and an example of each score modification."""
    from swaa.policies.scores import get_score, score_names

    classes = [get_score(name) for name in score_names()]
    return [(kind.__name__, _summary(kind).replace("`", ""), repr(kind.examples()[0])) for kind in classes]


def list_scorers() -> list[tuple[str, ...]]:
    """Name, meaning and parameters (with their defaults) of each scorer of a search."""
    from swaa.search.scorers import get_scorer, scorer_names

    found: list[tuple[str, ...]] = []
    for name in scorer_names():
        scorer = get_scorer(name)
        meaning = _summary(scorer).replace("`", "")
        found.append((name, "heads" if scorer.by_head else "layers", f"{meaning}\n{_parameters(scorer)}".rstrip()))
    return found


def list_tasks() -> list[tuple[str, ...]]:
    """Name, meaning and parameters (with their defaults) of each task."""
    from swaa.tasks import get_task, task_names

    return [(name, f"{_summary(get_task(name))}\n{_parameters(get_task(name))}") for name in task_names()]


def list_models() -> list[tuple[str, ...]]:
    """Name, licence and size of each model that needs no model hub."""
    from swaa.hf.weights import CATALOGUE

    return [(model.name, model.licence, f"{model.num_bytes / 1e6:.0f} MB") for model in CATALOGUE.values()]


def add_fetch(subparsers: Subparsers) -> None:
    """``swaa fetch NAME``"""
    parser = subparsers.add_parser("fetch", help="download a model of the catalogue into the cache")
    parser.add_argument("name", metavar="NAME", help="see 'swaa ls models'")
    parser.set_defaults(handler=fetch)


def fetch(args: argparse.Namespace) -> int:
    """Fetch a model and print its folder."""
    from swaa.hf.weights import fetch

    print(fetch(args.name))
    return 0


def _parameters(kind: type) -> str:
    """The fields of a dataclass with their defaults."""
    return ", ".join(f"{field.name}: {_default(field)}" for field in dataclasses.fields(kind))


def _default(field: dataclasses.Field[object]) -> str:
    """A parameter's default as YAML has it; a grader by its name alone."""
    if field.default is dataclasses.MISSING:
        return "(needed)"
    return str(getattr(field.default, "name", None) or json.dumps(field.default))


def _summary(documented: object) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().partition("\n")[0]


LISTINGS: dict[str, Callable[[], list[tuple[str, ...]]]] = {
    "policies": list_policies,
    "scores": list_scores,
    "scorers": list_scorers,
    "tasks": list_tasks,
    "models": list_models,
}
