"""What commands share: a file with overrides, plugins, the terminal."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


FILE = "the experiment, in YAML"
OVERRIDE = "a field to set, such as recipes[0].decoding.max_new_tokens=8"


def add_file(parser: argparse.ArgumentParser, file: str = FILE, override: str = OVERRIDE) -> None:
    parser.add_argument("file", metavar="FILE", help=file)
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=override)


def add_job(
    subparsers: Subparsers,
    name: str,
    handler: Callable[[argparse.Namespace], int],
    help: str,  # as argparse calls it
    *,
    file: str = FILE,
    override: str = OVERRIDE,
    former: str = "results",
) -> None:
    """A command that does what a file says and goes on with what stands in the output folder.

    Args:
        former: what ``--fresh`` deletes.
    """
    parser = subparsers.add_parser(name, help=help)
    add_file(parser, file, override)
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where results go (default: what the file says)")
    parser.add_argument("--fresh", action="store_true", help=f"delete the folder's former {former} first")
    parser.set_defaults(handler=handler)


def add_plugins(parser: argparse.ArgumentParser) -> None:
    plugin_help = "a file or module with policies of your own; may be repeated"
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help=plugin_help)


def make_console() -> Console:
    """Standard output; wide enough for any table where it is no terminal."""
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # what rich has just caught: it would exit with 1 here

    console = OurConsole()
    return console if console.is_terminal else OurConsole(width=160)


def say(console: Console, line: str) -> None:
    """A line as it is: not broken, not coloured, and its brackets are no markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
