"""``swaa compare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from swaa.cli.common import make_console, say
from swaa.errors import invalid

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers

ENDINGS = (".csv", ".md")
WHAT = "a table of each part: length, depth, question_type or evidence (default: of each length that was asked for)"


def add_compare(subparsers: Subparsers) -> None:
    """``swaa compare RUN RUN…``"""
    parser = subparsers.add_parser("compare", help="put runs into one table, with differences to a baseline")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    baseline = "the recipe that others are compared with (default: the first of full attention, not fine-tuned)"
    parser.add_argument("--baseline", metavar="NAME", help=baseline)
    parser.add_argument("--by", metavar="WHAT", default="none", help=WHAT)
    parser.add_argument(
        "--edges", metavar="N,N", help="upper edges of the parts of --by length, in tokens of the prompt"
    )
    parser.add_argument("--common", action="store_true", help="compare the samples that all runs have")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write the tables to a .csv or .md file")
    parser.set_defaults(handler=compare)


def compare(args: argparse.Namespace) -> int:
    """Compare runs, print the tables and write them."""
    from swaa.report import note, read_run, to_csv, to_markdown, to_rich
    from swaa.report.compare import compare_runs

    if args.output is not None and args.output.suffix not in ENDINGS:
        raise invalid("--output", accepted="a file ending in .csv or .md", got=str(args.output), mend="Rename it.")
    runs = [read_run(folder) for folder in args.runs]
    edges = None if args.edges is None else _edges(args.edges)
    found = compare_runs(runs, baseline=args.baseline, by=args.by, edges=edges, common=args.common)
    if args.output is not None:  # before anything is printed: who reads that may stop
        facts = "".join(f"- {fact}\n" for fact in found.facts)
        _write(
            args.output, to_csv(found.rows) if args.output.suffix == ".csv" else f"{facts}\n{to_markdown(found.rows)}"
        )
    console = make_console()
    for fact in found.facts:
        say(console, fact)
    say(console, "")
    for table in to_rich(found.rows):
        console.print(table)
    console.print(note(found.rows), style="dim", markup=False)
    if args.output is not None:
        say(console, f"Tables: {args.output}")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        accepted = f"a file that can be written ({error.strerror})"
        raise invalid("--output", accepted=accepted, got=str(path), mend="Name another.") from error


def _edges(text: str) -> list[int]:
    try:
        return [int(edge) for edge in text.split(",")]
    except ValueError as error:
        raise invalid("--edges", accepted="whole numbers", got=text, mend="Write --edges 1024,2048.") from error
