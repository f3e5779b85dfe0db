"""``swaa report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli.common import add_plugins, make_console, say
from swaa.errors import UserError

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers
    from swaa.report.runs import Run

RESOLUTION = 48
"""Cells per side of a mask's picture."""


def add_report(subparsers: Subparsers) -> None:
    """``swaa report RUN… [-o FILE]``"""
    parser = subparsers.add_parser("report", help="write runs as one HTML page, with plots and tables beside it")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run, finished or not")
    parser.add_argument("-o", "--output", metavar="FILE", default="report.html", help="the page (default: report.html)")
    add_plugins(parser)
    parser.set_defaults(handler=report)


def report(args: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    from swaa.report.html import check_output, has_matplotlib, make_report, write_report
    from swaa.report.runs import read_run

    output = Path(args.output)
    check_output(output)
    runs = [read_run(Path(folder)) for folder in args.runs]
    make_report(runs, {})  # mistakes are told before seconds of imports
    pictures, notices = draw_policies(runs, args.plugin)
    written = write_report(make_report(runs, pictures, notices), output)
    console = make_console()
    for run in runs:
        if run.note is not None:
            say(console, run.note)
    if not has_matplotlib():
        say(console, "No PNG files: they need matplotlib. Install it with: pip install 'swaa[plot]'")
    say(
        console,
        f"Report: {written[0]} ({written[0].stat().st_size / 1e6:.1f} MB). Plots and table: {written[1].parent}",
    )
    return 0


def draw_policies(
    runs: Sequence[Run], plugins: Sequence[str]
) -> tuple[dict[tuple[str, int], list[dict[str, Any]]], list[str]]:
    """The masks of the runs' policies by policy and number of layers, and a notice for each that cannot be drawn."""
    from swaa.compiler.picture import MOST_TOKENS, fitting_length, mask_pictures
    from swaa.policies import load_plugin, parse_policy

    for plugin in plugins:
        load_plugin(plugin)
    pictures: dict[tuple[str, int], list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for run in runs:
        model = run.info.model
        layers = model.num_layers or 1
        for text in dict.fromkeys(recipe.policy for recipe in run.info.recipes):
            if (text, layers) in pictures or text in failed:
                continue
            try:
                policy = parse_policy(text)
                length = min(MOST_TOKENS, fitting_length(policy) * 3 // 2)  # a prompt of two windows, and one more
                pictures[text, layers] = mask_pictures(
                    policy,
                    num_layers=layers,
                    num_heads=model.num_heads or 1,
                    length=length,
                    prompt_length=length * 2 // 3,
                    resolution=RESOLUTION,
                )
            except UserError as error:
                failed[text] = f"The masks of {text} are not drawn: {error}"
    mend = " A policy of your own needs --plugin FILE." if failed else ""
    return pictures, [f"{told}{mend}" for told in failed.values()]
