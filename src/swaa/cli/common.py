"""What commands share: a file with overrides, plugins, the terminal."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_file(
    parser: argparse.ArgumentParser,
    file: str = "the experiment, in YAML",
    override: str = "a field to set, such as recipes[0].decoding.max_new_tokens=8",
) -> None:
    parser.add_argument("file", metavar="FILE", help=file)
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=override)


def add_plugins(parser: argparse.ArgumentParser) -> None:
    plugin_help = "a file or module with policies of your own; may be repeated"
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help=plugin_help)


def make_console() -> Console:
    """Standard output; wide enough for any table where it is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)
