"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def number(value: float | None) -> str:
    """Three digits after the point; a dash for what is not known."""
    return "-" if value is None else f"{value:.3f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], rules: Sequence[str] | None = None) -> str:
    """A table; a bar in a cell does not end it.

    Args:
        rules: what stands below each heading: ``---`` for words, which is the default, or ``---:`` for numbers.
    """
    lines = [head, rules or ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
