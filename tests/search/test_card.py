"""What a card says, of planted outcomes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from search.test_outcome import SAMPLES, entry, full
from swaa.compiler.shape import ModelShape
from swaa.config import load_search
from swaa.search.budget import CostModel, Costs
from swaa.search.card import to_card
from swaa.search.choosing import Found
from swaa.search.outcome import Entry, judge

RIGHT, WRONG = [1] * SAMPLES, [0] * SAMPLES
SHAPE = ModelShape(30, 9, 3, 64)
CHOSEN, PATTERN = entry(3, Costs(1, 0.5, 0.4), RIGHT), entry(4, Costs(1, 0.5, 0.4), WRONG, "fixed pattern")
DROPPED = dataclasses.replace(PATTERN.scored or pytest.fail("it is scored"), calibration_nll=0.75)


def card(file: Path, overrides: list[str], *entries: Entry, best: list[int] | None = None) -> str:
    """The card of a search with these recipes in its test, beside full attention, and one candidate that went no
    further."""
    search = load_search(file, overrides)
    chosen = [one.scored for one in entries if one.scored is not None and one.role == "chosen"]
    second = [dataclasses.replace(one, validation_nll=0.25, validation_accuracy=0.125) for one in chosen]
    found = Found((*chosen, DROPPED), CostModel.of(search, SHAPE, "cpu"), 7)
    outcome = judge([full(RIGHT if best is None else best), *entries], search.scenarios, new_tokens=5)
    return to_card(search, outcome, found, second, plot="front.svg")


def test_the_card_tells_layers_stages_and_budget_in_words(file: Path) -> None:
    told = card(file, ["budget.max_full_layers=4"], CHOSEN, PATTERN)
    assert "**r3**: Full attention on layer 3; as a policy: `(SlidingWindow(128)" in told
    assert "Budget: at most 4 layers with full attention, KV at most 0.6 of full attention's. Request:" in told
    assert "1. The scorers chose 2 candidates within the budget, on 2 samples of needle_single (400 tokens" in told
    assert "\n2. 1 of them, the best there by NLL and cost, went on to 2 other samples of needle_single (seed" in told
    assert "\n3. 1 of these, the best there by NLL and cost, went on to the test: 8 held-out samples" in told
    assert "| add_one 1 w128-s10-prefill | 0.500 | 0.250 | 0.125 | yes |" in told
    assert "| add_one 1 w128-s10-prefill | 0.750 | - | - | no |" in told
    assert "full_layers" not in told
    assert "| full, time, KV |" in told


def test_a_files_samples_are_no_others_in_the_second_stage(file: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "What is it?", "answer": "This."}\n')
    tasks = f"calibration.tasks=[{{name: file, path: {data}}}, {{name: needle_single}}]"
    told = card(file, [tasks, "halving.metric=accuracy"], CHOSEN)
    assert "on 2 samples of each of file" in told
    assert "went on to 2 samples of each of file" in told
    assert "the best there by accuracy and cost, went on to the test" in told


def test_a_p_value_is_never_zero(file: Path) -> None:
    many = [dataclasses.replace(one, example=f"{one.example}/{n}") for one in CHOSEN.records for n in range(3)]
    others = [dataclasses.replace(one, example=f"{one.example}/{n}") for one in PATTERN.records for n in range(3)]
    both = (dataclasses.replace(CHOSEN, records=tuple(many)), dataclasses.replace(PATTERN, records=tuple(others)))
    told = card(file, [], *both)
    (line,) = [line for line in told.splitlines() if line.startswith("| r3 | r4 |")]
    assert line.endswith("| <.001 |")


def test_the_card_says_what_tells_nothing(file: Path) -> None:
    nothing, saves, hides = "Full attention itself got nothing right", "none saves memory", "hides nothing from prompts"
    told = card(file, [], CHOSEN, PATTERN)
    assert not any(words in told for words in (nothing, saves, hides))
    assert nothing in card(file, [], CHOSEN, best=WRONG)
    assert saves in card(file, [], entry(3, Costs(1, 0.5, 1.0), RIGHT))
    told = card(file, ["space.windows=[16, 396]"], CHOSEN)
    assert "- w396-s4-both hides nothing from prompts of 400 tokens: nothing was there to choose by." in told
    assert "w16-s4-both hides" not in told
