"""Fronts, winners and comparisons of planted test results, against loops."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.config import Scenarios
from swaa.report import Record
from swaa.search.budget import Costs
from swaa.search.card import to_csv
from swaa.search.halving import FULL, Scored, after_calibration, after_validation
from swaa.search.outcome import Entry, Outcome, judge
from swaa.search.space import Base, Candidate

few = settings(max_examples=settings.default.max_examples // 10)
BASE = Base(128, 10, "prefill")
SAMPLES = 8


def records(name: str, right: list[int], *, prefill: float = 1.0, step: float = 10.0) -> tuple[Record, ...]:
    """A record a sample: whether its answer was right, and how long it took."""
    timing = {"prefill_seconds": prefill, "decode_ms_per_token": step, "batch_size": 4}
    return tuple(
        Record(name, name, "t", 400, f"e{place}", 0, 400, "a", scores={"score": score, "forced_nll": 1}, timing=timing)
        for place, score in enumerate(right)
    )


def scored(chosen: tuple[int, ...], costs: Costs, origin: str = "add_one", base: Base = BASE) -> Scored:
    return Scored(Candidate(base, chosen, (origin,), 30, 9), costs, 0.5)


def entry(number: int, costs: Costs, right: list[int], role: str = "chosen", *, within: bool = True) -> Entry:
    one = scored((number,), costs)
    return Entry(f"r{number}", role, one, costs, within, records(f"r{number}", right))


def full(right: list[int]) -> Entry:
    return Entry(FULL, "full attention", None, Costs(30, 1.0, 1.0), True, records(FULL, right))


answers = st.lists(st.integers(0, 1), min_size=SAMPLES, max_size=SAMPLES)
shares = st.sampled_from([0.2, 0.4, 0.5, 0.8, 1.0])
costs = st.builds(Costs, st.integers(0, 4), shares, shares)
roles = st.sampled_from(["chosen", "fixed pattern", "random set"])
drawn = st.lists(st.tuples(costs, answers, roles, st.booleans()), min_size=1, max_size=6)


@few
@given(answers, drawn, st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from([1.0, 2.0]))
def test_winners_are_what_a_search_through_all_finds(
    best: list[int], rows: list[tuple[Costs, list[int], str, bool]], share: float, speedup: float
) -> None:
    entries = [full(best), *(entry(n, cost, right, role, within=ok) for n, (cost, right, role, ok) in enumerate(rows))]
    outcome = judge(entries, Scenarios(share, speedup), new_tokens=5)
    able = [e for e in entries if e.within_budget and e.role != "random set"]
    rate = {e.name: sum(r.scores["score"] for r in e.records) / SAMPLES for e in entries}
    cost = {e.name: e.costs for e in entries}
    fair = [e.name for e in able if rate[e.name] >= share * rate[FULL] - 1e-9]
    fast = [e.name for e in able if 1 / cost[e.name].time_ratio >= speedup]
    fastest, accurate, smallest, anyone = (winner.name for winner in outcome.winners)
    for winner, among, kind in ((fastest, fair, "time_ratio"), (smallest, fair, "kv_share")):
        assert (winner is None) == (not among)
        if winner is not None:
            assert winner in among
            assert getattr(cost[winner], kind) == min(getattr(cost[name], kind) for name in among)
            equal = [name for name in among if getattr(cost[name], kind) == getattr(cost[winner], kind)]
            assert rate[winner] == max(rate[name] for name in equal)
    for winner, among in ((accurate, fast), (anyone, [e.name for e in able])):
        assert (winner is None) == (not among)
        assert winner is None or rate[winner] == max(rate[name] for name in among)
    check_fronts(outcome, {e.name for e in able}, rate, cost)


def check_fronts(outcome: Outcome, able: set[str], rate: dict[str, float], cost: dict[str, Costs]) -> None:
    for kind in ("full_layers", "time_ratio", "kv_share"):
        for one in outcome.tested:
            price = {name: getattr(cost[name], kind) for name in cost}
            beaten = any(
                rate[other] >= rate[one.name]
                and price[other] <= price[one.name]
                and (rate[other], price[other]) != (rate[one.name], price[one.name])
                for other in able
            )
            assert (kind in one.fronts) == (one.name in able and not beaten)


def test_differences_are_paired_and_corrected_and_times_measured() -> None:
    half = [1, 1, 1, 1, 0, 0, 0, 0]
    chosen = entry(1, Costs(1, 0.5, 0.5), [1, 1, 1, 1, 1, 1, 0, 0])
    control = entry(2, Costs(1, 0.5, 0.5), [0, 0, 0, 0, 1, 1, 0, 0], "fixed pattern")
    other = Base(64, 0, "both")
    far = Entry(
        "far",
        "random set",
        scored((3,), Costs(1, 0.4, 0.4), base=other),
        Costs(1, 0.4, 0.4),
        True,
        records("far", half),
    )
    two = scored((4, 5), Costs(2, 0.4, 0.4))
    more = Entry("two", "random set", two, two.costs, True, records("two", half))
    pattern = scored((4, 5, 6), Costs(3, 0.4, 0.4), "pattern[1::2]")
    asked = Entry("asked", "fixed pattern", pattern, pattern.costs, False, records("asked", half, prefill=0.5, step=5))
    outcome = judge([full(half), chosen, control, far, more, asked], Scenarios(), new_tokens=5)
    assert [(one.chosen, one.control) for one in outcome.comparisons] == [("r1", "r2"), ("r1", "asked")]
    difference = outcome.comparisons[0].paired
    assert difference.difference.value == pytest.approx(0.5)
    assert difference.p == pytest.approx(2 / 2**4)
    assert difference.p_holm == pytest.approx(4 / 2**4)
    against = outcome.named("r1").against_full
    assert against is not None
    assert against.difference.value == pytest.approx(0.25)
    assert outcome.named(FULL).against_full is None
    assert outcome.named("asked").measured_ratio == pytest.approx(0.5)
    assert outcome.named("asked").fronts == (), "beyond the budget"
    assert outcome.num_samples == SAMPLES


def test_what_was_not_generated_is_judged_teacher_forced() -> None:
    exact = tuple(
        Record(FULL, FULL, "t", 400, f"e{n}", 0, 400, "a", scores={"forced_exact": n % 2, "forced_nll": 0.5})
        for n in range(4)
    )
    outcome = judge([Entry(FULL, "full attention", None, Costs(3, 1, 1), True, exact)], Scenarios(), new_tokens=1)
    assert outcome.metric == "forced"
    assert outcome.tested[0].accuracy.value == 0.5
    assert outcome.tested[0].measured_ratio is None


def test_nothing_wins_where_nothing_is_good_enough() -> None:
    weak = entry(1, Costs(1, 0.5, 0.5), [1, 0, 0, 0, 0, 0, 0, 0])
    best = Entry(FULL, "full attention", None, Costs(30, 1.0, 1.0), False, records(FULL, [1] * SAMPLES))
    outcome = judge([best, weak], Scenarios(accuracy_share=0.9, speedup=4), new_tokens=5)
    assert [winner.name for winner in outcome.winners] == [None, None, None, "r1"]
    assert outcome.winners[0].nearest == "r1, accuracy 0.125 of 0.900"
    assert outcome.winners[1].nearest == "r1, 2.00 times"


def test_the_luckiest_random_set_wins_nothing() -> None:
    lucky = entry(2, Costs(1, 0.3, 0.3), [1] * SAMPLES, "random set")
    chosen = entry(1, Costs(1, 0.5, 0.5), [1, 1, 1, 1, 1, 1, 1, 0])
    outcome = judge([full([1] * SAMPLES), chosen, lucky], Scenarios(accuracy_share=0.8), new_tokens=5)
    assert [winner.name for winner in outcome.winners] == ["r1", "r1", "r1", FULL]
    assert outcome.named("r2").fronts == ()


def test_halving_keeps_what_is_best_at_its_cost() -> None:
    some = [
        Scored(Candidate(BASE, (n,), (f"s{n}",), 30, 9), cost, nll, 1 - nll, accuracy)
        for n, (cost, nll, accuracy) in enumerate(
            [(Costs(1, 0.3, 0.3), 0.9, 0.1), (Costs(1, 0.3, 0.3), 0.8, 0.2), (Costs(4, 0.5, 0.5), 0.5, 0.1)]
        )
    ]
    assert [one.candidate.origins[0] for one in after_calibration(some, 0.5)] == ["s1", "s2"]
    assert [one.candidate.origins[0] for one in after_calibration(some, 1.0)] == ["s0", "s1", "s2"]
    assert [one.candidate.origins[0] for one in after_validation(some, 0.3, "nll")] == ["s0"]
    assert [one.candidate.origins[0] for one in after_validation(some, 0.3, "accuracy")] == ["s1"]


def test_the_table_has_a_line_for_each_and_names_files_of_the_fronts() -> None:
    chosen, lost = entry(1, Costs(1, 0.5, 0.5), [1] * SAMPLES), entry(2, Costs(1, 0.5, 0.5), [0] * SAMPLES)
    lines = list(
        csv.DictReader(io.StringIO(to_csv(judge([full([1] * SAMPLES), chosen, lost], Scenarios(), new_tokens=2))))
    )
    assert [line["recipe"] for line in lines] == [FULL, "r1", "r2"]
    assert lines[1]["fronts"] == "full_layers time_ratio kv_share"
    assert (lines[1]["file"], lines[2]["file"]) == ("recipes/r1.yaml", "")
    assert (lines[1]["units"], lines[1]["window"], lines[1]["chosen_by"]) == ("1", "128", "add_one")
    assert float(lines[2]["difference"]) == -1
