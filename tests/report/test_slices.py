from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report.planted import FULL, TUNED, WINDOW, record
from swaa.errors import UserError
from swaa.report.slices import UNKNOWN, make_slicer

WINDOWS = {FULL: None, WINDOW: 128}


def label(by: str, recipe: str = WINDOW, edges: list[int] | None = None, **fields: Any) -> str:
    return make_slicer(by, WINDOWS, edges)(record(recipe, 0, 1.0, **fields)).label


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1, "<= 1,024 tokens"),
        (1024, "<= 1,024 tokens"),
        (1025, "> 1,024 to 2,048 tokens"),
        (8192, "> 4,096 to 8,192 tokens"),
        (8193, "> 8,192 tokens"),
    ],
)
def test_lengths_are_the_papers_bins_in_windows(tokens: int, expected: str) -> None:
    assert label("length", prompt_tokens=tokens) == expected


def test_lengths_without_a_window_or_with_edges_of_ones_own() -> None:
    paper = make_slicer("length", {FULL: None})
    assert paper(record(FULL, 0, 1.0, prompt_tokens=20_000)).label == "> 16,000 to 32,000 tokens"
    assert label("length", edges=[100], prompt_tokens=101) == "> 100 tokens"


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ([0], "depth 0-20 %"),
        ([0.2], "depth 20-40 %"),
        ([0.9, 0.5], "depth 40-60 %"),
        ([1.0], "depth 80-100 %"),
        ([], "unknown"),
    ],
)
def test_depth_is_that_of_the_first_evidence(depths: list[float], expected: str) -> None:
    assert label("depth", metadata={"depths": depths}) == expected


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (64, "<= 0.5 windows"),
        (128, "> 0.5 to 1 windows"),
        (129, "> 1 to 2 windows"),
        (128 * 16 + 1, "> 16 windows"),
    ],
)
def test_evidence_is_told_in_windows_of_the_recipe_or_of_the_others(distance: int, expected: str) -> None:
    for recipe in (WINDOW, FULL):
        assert label("evidence", recipe, metadata={"evidence_distance": distance}) == expected
    wider = make_slicer("evidence", {WINDOW: 128, TUNED: 4096})(
        record(WINDOW, 0, 1.0, metadata={"evidence_distance": distance})
    )
    assert wider.label == expected, "its own window, not the largest"


def test_what_has_no_metadata_is_unknown_and_last() -> None:
    for by in ("depth", "question_type", "evidence"):
        assert make_slicer(by, WINDOWS)(record(WINDOW, 0, 1.0)) == UNKNOWN
    none = make_slicer("evidence", {FULL: None})(record(FULL, 0, 1.0, metadata={"evidence_distance": 5}))
    assert none == UNKNOWN
    kind = make_slicer("question_type", WINDOWS)(record(WINDOW, 0, 1.0, metadata={"question_type": "zeta"}))
    assert kind.label == "zeta"
    assert sorted([UNKNOWN, kind]) == [kind, UNKNOWN]


@settings(max_examples=max(1, settings.default.max_examples // 20))
@given(st.lists(st.integers(1, 50), min_size=1, unique=True), st.integers(1, 60))
def test_each_length_is_in_the_bin_whose_ends_hold_it(edges: list[int], tokens: int) -> None:
    edges.sort()
    part = make_slicer("length", WINDOWS, edges)(record(WINDOW, 0, 1.0, prompt_tokens=tokens))
    above = [edge for edge in edges if edge >= tokens]
    below = [edge for edge in edges if edge < tokens]
    ends = ([f"> {below[-1]}"] if below else []) + ([f"{above[0]}"] if above else [])
    expected = f"<= {above[0]}" if above and not below else " to ".join(ends)
    assert part.label == f"{expected} tokens"
    assert part.place == len(below)


@pytest.mark.parametrize(
    ("by", "edges", "message"),
    [
        ("evidance", None, "by: unknown value 'evidance'. Did you mean 'evidence'?"),
        ("depth", [5], r"edges: expected none, unless by is 'length', got \[5\]"),
        ("length", [5, 3], r"edges: expected ascending edges, got \[5, 3\]"),
        ("length", [0], "edges: expected an int >= 1, got 0"),
        ("length", [], "edges: expected a list of at least one edge"),
    ],
)
def test_what_cannot_be_sliced_is_refused(by: str, edges: list[int] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_slicer(by, WINDOWS, edges)
