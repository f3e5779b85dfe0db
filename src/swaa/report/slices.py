"""Parts of the samples: by prompt length, depth of the evidence, question type, or distance to the evidence."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from swaa.errors import invalid
from swaa.reading import check_choice, check_items, check_whole
from swaa.report.records import Record

BY = ("none", "length", "depth", "question_type", "evidence")
PAPER_EDGES = (16_000, 32_000, 64_000, 128_000)
"""Edges of the bins of prompt tokens in arXiv 2512.10411, whose smallest window is 2,000 tokens."""
EDGES_IN_WINDOWS = (8, 16, 32, 64)
"""The same edges in windows of 2,000 tokens."""
EVIDENCE_EDGES = (0.5, 1, 2, 4, 8, 16)
"""Windows from the evidence to the end of the prompt. Up to 1, the window of the last prompt token holds it."""
DEPTH_EDGES = (0.2, 0.4, 0.6, 0.8)


class Part(NamedTuple):
    """A part of the samples; parts are shown in the order of ``place``."""

    place: float
    label: str


UNKNOWN = Part(float("inf"), "unknown")
"""The part of samples that do not have the fact; they are counted, never left out."""

Slicer = Callable[[Record], Part]


def make_slicer(by: str, windows: Mapping[str, int | None], edges: Sequence[int] | None = None) -> Slicer:
    """What tells the part of a record.

    Args:
        by: one of ``BY`` but ``none``. ``length``: tokens of the prompt. ``depth``: of the evidence, from the prompt's
            beginning; of several pieces the first. ``question_type``: as the task says. ``evidence``: tokens from the
            farthest evidence to the end of the prompt, in windows of the recipe.
        windows: tokens of each recipe's largest window, by hash. A recipe without one, such as full attention, is told
            in windows of the largest of the others, so that it can be compared with them.
        edges: of ``length``: upper edges of the bins, in tokens, ascending; a last bin holds what is longer. By default
            those of the paper, scaled to the largest window.

    Raises:
        UserError: ``by`` is none of these; the edges do not ascend, or there are edges and ``by`` is not ``length``.
    """
    if edges is not None:
        _check_edges(by, edges)
    check_choice("by", by, BY[1:])
    largest = max((window for window in windows.values() if window), default=None)
    if by == "length":
        chosen = edges or ([edge * largest for edge in EDGES_IN_WINDOWS] if largest else PAPER_EDGES)
        return lambda record: _bin(record.prompt_tokens, chosen, "tokens")
    if by == "depth":
        return _by_depth
    if by == "question_type":
        return _by_question_type
    return lambda record: _by_evidence(record, windows.get(record.recipe_hash) or largest)


def _check_edges(by: str, edges: Sequence[int]) -> None:
    if by != "length":
        raise invalid("edges", accepted="none, unless by is 'length'", got=list(edges), mend="Leave them out.")
    for edge in check_items("edges", edges, of="edge", mend="Write 1024,2048."):
        check_whole("edges", edge, minimum=1)
    if list(edges) != sorted(edges):
        raise invalid("edges", accepted="ascending edges", got=list(edges), mend="Sort them.")


def _by_depth(record: Record) -> Part:
    depths = record.metadata.get("depths")
    if not isinstance(depths, list | tuple) or not depths:
        return UNKNOWN
    place = bisect.bisect_right(DEPTH_EDGES, min(depths))
    ends = (0, *DEPTH_EDGES, 1)
    return Part(place, f"depth {100 * ends[place]:.0f}-{100 * ends[place + 1]:.0f} %")


def _by_question_type(record: Record) -> Part:
    kind = record.metadata.get("question_type")
    return Part(0, str(kind)) if kind else UNKNOWN


def _by_evidence(record: Record, window: int | None) -> Part:
    distance = record.metadata.get("evidence_distance")
    if not isinstance(distance, int | float) or window is None:
        return UNKNOWN
    return _bin(distance / window, EVIDENCE_EDGES, "windows")


def _bin(value: float, edges: Sequence[float], unit: str) -> Part:
    """The bin (lower edge, upper edge] of a value; the last one has no upper edge."""
    place = bisect.bisect_left(edges, value)
    if place == len(edges):
        return Part(place, f"> {edges[-1]:,} {unit}")
    upper = f"{edges[place]:,} {unit}"
    return Part(place, f"<= {upper}" if place == 0 else f"> {edges[place - 1]:,} to {upper}")
