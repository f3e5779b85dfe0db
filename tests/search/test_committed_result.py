"""The committed search on SmolLM2-135M: what the docs claim of it is what its records say, counted again here."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

from swaa.config import load_search
from swaa.search.choices import spread

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "results" / "search-smollm2"
CHOSEN, EVERY_FOURTH, EVERY_SECOND = "gate_gradient(at=0) 8", "every 8", "pattern[1::2] 15"


@pytest.fixture(scope="module")
def right() -> dict[str, dict[str, float]]:
    """For each recipe, the score of each sample of the test."""
    found: dict[str, dict[str, float]] = {}
    for line in (FOLDER / "test" / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        of_recipe = found.setdefault(record["recipe"].removesuffix(" w128-s10-prefill"), {})
        of_recipe[record["example"]] = record["scores"]["score"]
    return found


def mean(values: dict[str, float]) -> float:
    return math.fsum(values.values()) / len(values)


def rows() -> dict[str, dict[str, str]]:
    with (FOLDER / "front.csv").open() as file:
        return {row["recipe"].removesuffix(" w128-s10-prefill"): row for row in csv.DictReader(file)}


def comparison(control: str) -> dict[str, float]:
    """What the search says of the chosen layers against a control."""
    found = json.loads((FOLDER / "search.json").read_text())["outcome"]["comparisons"]
    (one,) = [pair for pair in found if pair["control"].startswith(control + " ")]
    return dict(one["paired"])


def test_every_recipe_answered_the_same_hundred_samples(right: dict[str, dict[str, float]]) -> None:
    assert len(right) == 1 + 1 + 1 + 10 + 1
    samples = set(right["full attention"])
    assert len(samples) == 100
    assert all(set(scores) == samples for scores in right.values())
    assert {name: float(row["accuracy"]) for name, row in rows().items()} == pytest.approx(
        {name: mean(scores) for name, scores in right.items()}
    )


def test_chosen_layers_beat_as_many_fixed_ones_by_what_was_asked(right: dict[str, dict[str, float]]) -> None:
    assert rows()[EVERY_FOURTH]["units"].split() == [str(layer) for layer in range(1, 30, 4)]
    assert spread(30, 8) == tuple(range(1, 30, 4))
    gains = [right[CHOSEN][sample] - right[EVERY_FOURTH][sample] for sample in right[CHOSEN]]
    paired = comparison(EVERY_FOURTH)
    assert math.fsum(gains) / 100 == pytest.approx(paired["difference"]["value"])
    assert paired["difference"]["value"] >= 0.15
    assert paired["difference"]["low"] > 0


def test_eight_chosen_layers_are_no_worse_than_fifteen_fixed_ones(right: dict[str, dict[str, float]]) -> None:
    assert rows()[EVERY_SECOND]["units"].split() == [str(layer) for layer in range(1, 30, 2)]
    assert comparison(EVERY_SECOND)["difference"]["high"] >= 0
    assert mean(right[CHOSEN]) >= mean(right[EVERY_SECOND])


def test_ten_random_sets_of_the_same_size_lie_below(right: dict[str, dict[str, float]]) -> None:
    draws = [name for name in right if name.startswith("random[")]
    assert len(draws) == 10
    assert all(len(rows()[name]["units"].split()) == 8 for name in draws)
    assert all(mean(right[name]) < mean(right[CHOSEN]) for name in draws)


def test_no_fixed_pattern_dominates_the_front() -> None:
    front = [row for row in rows().values() if row["fronts"]]
    fixed = [row for row in rows().values() if row["role"] == "fixed pattern"]
    assert front
    assert fixed
    for kind in ("full_layers", "time_ratio", "kv_share"):
        for one in front:
            for other in fixed:
                better = float(other["accuracy"]) > float(one["accuracy"])
                assert not (better and float(other[kind]) <= float(one[kind])), (one["recipe"], other["recipe"], kind)


def test_it_is_the_search_of_the_file() -> None:
    now, then = load_search(ROOT / "experiments/search-smollm2.yaml"), load_search(FOLDER / "search.yaml")
    differing = {key for key, value in now.to_dict().items() if then.to_dict()[key] != value}
    assert differing <= {"output"}
    seeds = (now.calibration.seed, now.halving.seed, now.test.seed)
    assert len(set(seeds)) == 3


def test_the_page_says_what_the_folder_says() -> None:
    page = (ROOT / "docs/recipe-search.md").read_text()
    for name in (CHOSEN, EVERY_FOURTH, EVERY_SECOND, "full attention"):
        row = rows()[name]
        low, high = (float(row[f"accuracy_{end}"]) for end in ("low", "high"))
        shown = rf"{float(row['accuracy']):.2f}(\*\*)? \[{low:.2f}, {high:.2f}\] \| {float(row['nll']):.3f}"
        assert re.search(shown, page), name
    assert ", ".join(rows()[CHOSEN]["units"].split()) in page
