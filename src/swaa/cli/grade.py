"""``swaa grade``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from swaa.cli.common import make_console, say
from swaa.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swaa.cli.common import Subparsers
    from swaa.engine.regrade import Regraded

GRADER = "what grades: a name, or a mapping in YAML such as '{name: judge, model: M}' (default: the tasks' own graders)"
MAX_TOLD = 3


def add_grade(subparsers: Subparsers) -> None:
    """``swaa grade RUN…``"""
    parser = subparsers.add_parser("grade", help="grade the answers of a run again, without the model")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    parser.add_argument("--grader", metavar="GRADER", help=GRADER)
    parser.add_argument("--all", action="store_true", help="grade all answers, not only those whose grading failed")
    parser.set_defaults(handler=grade)


def grade(args: argparse.Namespace) -> int:
    """Grade runs again; the exit code is 1 if grading failed for an answer again."""
    grader = None if args.grader is None else _read(args.grader)
    from swaa.engine.regrade import regrade
    from swaa.report import note, to_rich

    console = make_console()
    failed = 0
    for folder in args.runs:
        found = regrade(folder, grader, everything=args.all)
        for table in to_rich(found.rows):
            console.print(table)
        if found.rows:
            console.print(note(found.rows), style="dim", markup=False)
        for line in told(folder, found):
            say(console, line)
        failed += found.failed
        if grader is not None and found.graded and found.kept:
            say(console, "  The kept grades may be another grader's: --all grades all answers with the same one.")
    return 1 if failed else 0


def told(folder: Path, found: Regraded) -> list[str]:
    """What became of a run's records, in lines."""
    lines = [f"{folder}: {found.graded} answers graded again, {found.kept} keep their grade."]
    if not found.graded:
        lines = [f"{folder}: nothing to grade again; {found.kept} answers keep their grade. --all grades them all."]
    if found.no_sample:
        lines.append(f"  {found.no_sample} answers stay ungraded: samples.jsonl does not hold their examples.")
    if found.failed:
        lines.append(f"  {found.failed} could not be graded again:")
        lines += [f"    {error}" for error in found.errors[:MAX_TOLD]]
        if len(found.errors) > MAX_TOLD:
            lines.append(f"    and {len(found.errors) - MAX_TOLD} other errors, in the records")
    return lines


def _read(text: str) -> str | Mapping[str, object]:
    import yaml  # type: ignore[import-untyped]  # comes with omegaconf

    accepted, mend = "the name of a grader or a mapping in YAML", "Write a name, or '{name: …, parameter: value}'."
    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise invalid("--grader", accepted=accepted, got=text, mend=mend) from error
    if not isinstance(value, str | dict):
        raise invalid("--grader", accepted=accepted, got=text, mend=mend)
    return value
