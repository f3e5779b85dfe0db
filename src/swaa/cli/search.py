"""``swaa search``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from swaa.cli.common import add_job, make_console, say

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers


def add_search(subparsers: Subparsers) -> None:
    """``swaa search FILE [KEY=VALUE …]``"""
    add_job(
        subparsers,
        "search",
        search,
        "find which layers keep full attention within a budget, or go on with it",
        file="the search, in YAML",
        override="a field to set, such as space.counts=[4,8] or budget.max_full_layers=8",
    )


def search(args: argparse.Namespace) -> int:
    """Search, and print the winners."""
    from swaa.config import load_search

    config = load_search(args.file, args.overrides, output=args.output)
    from swaa.search.run import run_search  # a mistake in the file is told before seconds of imports

    outcome = run_search(config, fresh=args.fresh)
    console = make_console()
    for winner in outcome.winners:
        if winner.name is None:
            nearest = f" The nearest: {winner.nearest}." if winner.nearest else ""
            say(console, f"{winner.question}: nothing.{nearest}")
            continue
        one = outcome.named(winner.name)
        timed = outcome.timed_of(one.name)
        measured = "" if timed is None else f" (measured: {timed.time_ratio:.2f})"
        cost = f"predicted time {one.costs.time_ratio:.2f}{measured}, KV {one.costs.kv_share:.2f} of full attention's"
        say(console, f"{winner.question}: {one.name}, accuracy {one.accuracy.value:.3f}, {cost}")
    say(console, f"Card, front and recipes: {config.output}")
    return 0
