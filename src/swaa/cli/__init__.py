"""The command line: parsing only. Each command is one function that adds its parser, and one that carries it out.

Nothing heavy is imported before a command needs it, so that ``swaa --help`` is instant. A mistake of the user's is one
message on standard error and exit code 2; Ctrl-C is exit code 130, and 141 says that nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from swaa import __version__
from swaa.cli.check import add_check
from swaa.cli.compare import add_compare
from swaa.cli.experiments import add_bench, add_run, add_validate
from swaa.cli.grade import add_grade
from swaa.cli.harness import add_lm_eval
from swaa.cli.listings import add_fetch, add_ls
from swaa.cli.new_policy import add_new_policy
from swaa.cli.policies import add_draw, add_explain
from swaa.cli.recall import add_recall
from swaa.cli.report import add_report
from swaa.cli.search import add_search
from swaa.cli.tuning import add_distill, add_finetune, add_merge
from swaa.errors import UserError

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers

USER_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141

COMMANDS: tuple[Callable[[Subparsers], None], ...] = (
    add_run,
    add_distill,
    add_finetune,
    add_merge,
    add_search,
    add_bench,
    add_lm_eval,
    add_grade,
    add_compare,
    add_report,
    add_validate,
    add_ls,
    add_fetch,
    add_explain,
    add_draw,
    add_check,
    add_new_policy,
    add_recall,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; the exit code."""
    try:
        args = parse(argv)
        code: int = args.handler(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"swaa: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'Interrupted.'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `swaa ls policies | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at exit
        return BROKEN_PIPE
    return code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with ``handler``: the function that carries the command out and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="swaa",
        description="Write an attention policy once; run it on any full-attention Hugging Face model.",
    )
    parser.add_argument("--version", action="version", version=f"swaa {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    args, rest = parser.parse_known_args(argv)
    if rest:  # argparse leaves overrides that follow an option
        if "overrides" not in args or any(item.startswith("-") for item in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.overrides = [*args.overrides, *rest]
    return args
