"""Scorers that switch layers, and controls: against loops over tables, and as users write them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf.zoo import Architecture
from search.probe_oracle import BASE, items_of
from swaa.errors import UserError
from swaa.search.choices import Unit
from swaa.search.probe import Probe
from swaa.search.scorers import (
    AddOne,
    DropOne,
    Fixed,
    Greedy,
    Random,
    Scorer,
    get_scorer,
    parse_scorer,
    register_scorer,
    scorer_names,
)
from swaa.search.space import Base, Candidate, fixed

LAYERS = 5
ITEMS = items_of((9, 2), (7, 1))
SETS = [frozenset[Unit](some) for size in range(LAYERS + 1) for some in itertools.combinations(range(LAYERS), size)]
Table = dict[frozenset[Unit], float]


@cache
def model(layers: int = LAYERS) -> torch.nn.Module:
    return Architecture("llama", {"num_hidden_layers": layers}).build()


def probe_of(table: Table, metric: str = "nll") -> Probe:
    """A real probe, whose book has the loss of every choice, so that the model never runs."""
    probe = Probe(model(), ITEMS, BASE)
    for chosen, loss in table.items():
        probe.book.add(probe.subject, metric, chosen, torch.tensor([loss - 1.0, loss + 1.0]))
    return probe


# quarters: sums of them are exact, so that ties are ties
tables = st.lists(st.integers(-12, 12), min_size=len(SETS), max_size=len(SETS)).map(
    lambda values: {chosen: value / 4 for chosen, value in zip(SETS, values, strict=True)}
)


def best(scores: list[float], count: int) -> tuple[int, ...]:
    """The largest, one after another, ties to the earlier."""
    left, found = list(range(len(scores))), []
    for _ in range(count):
        top = left[0]
        for one in left:
            if scores[one] > scores[top]:
                top = one
        left.remove(top)
        found.append(top)
    return tuple(sorted(found))


@given(tables, st.sampled_from(["nll", "kl"]), st.integers(0, LAYERS))
@settings(max_examples=max(5, settings.default.max_examples // 50))
def test_one_layer_switched(table: Table, metric: str, count: int) -> None:
    probe = probe_of(table, metric)
    gained, lost, everything = [], [], set(range(LAYERS))
    for layer in range(LAYERS):
        gained.append(table[frozenset()] - table[frozenset([layer])])
        lost.append(table[frozenset(everything - {layer})] - table[frozenset(everything)])
    assert list(AddOne(metric).score(probe)) == gained
    assert list(DropOne(metric).score(probe)) == lost
    assert AddOne(metric).choose(probe, count) == best(gained, count)
    assert DropOne(metric).choose(probe, count) == best(lost, count)
    assert probe.evaluations == 0


def lazily(table: Table, rounds: int) -> list[int]:
    """Greedy selection with lazy re-evaluation, on plain lists."""
    chosen: frozenset[Unit] = frozenset()
    bound = [float("inf")] * LAYERS
    order: list[int] = []
    for _ in range(rounds):
        fresh: set[int] = set()
        while True:
            left = [layer for layer in range(LAYERS) if layer not in chosen]
            top = left[0]
            for layer in left:
                if bound[layer] > bound[top]:
                    top = layer
            if top in fresh:
                break
            bound[top] = table[chosen] - table[chosen | {top}]
            fresh.add(top)
        chosen |= {top}
        order.append(top)
    return order


@given(tables, st.sampled_from(["nll", "kl"]))
@settings(max_examples=max(5, settings.default.max_examples // 50))
def test_greedy_is_lazy_forward_selection(table: Table, metric: str) -> None:
    probe = probe_of(table, metric)
    order = lazily(table, LAYERS)
    assert list(Greedy(metric).order(probe, LAYERS)) == order
    for count in range(LAYERS + 1):
        assert Greedy(metric).choose(probe, count) == tuple(sorted(order[:count]))
    scores = Greedy(metric).score(probe)
    assert sorted(range(LAYERS), key=lambda layer: -scores[layer]) == order


@given(st.lists(st.sets(st.integers(0, 9)), min_size=LAYERS, max_size=LAYERS))
@settings(max_examples=max(5, settings.default.max_examples // 50))
def test_where_gains_only_shrink_lazy_is_plain_greedy(covers: list[set[int]]) -> None:
    def loss(chosen: frozenset[Unit]) -> float:
        return 10.0 - len(set().union(*(covers[layer] for layer in chosen)))  # type: ignore[index]

    table = {chosen: loss(chosen) for chosen in SETS}
    chosen: frozenset[Unit] = frozenset()
    for count in range(1, LAYERS + 1):  # every layer that is left is tried in every round
        left = [layer for layer in range(LAYERS) if layer not in chosen]
        gains = [loss(chosen) - loss(chosen | {layer}) for layer in left]
        chosen |= {left[gains.index(max(gains))]}
        assert Greedy().choose(probe_of(table), count) == tuple(sorted(chosen))  # type: ignore[type-var]


@pytest.mark.parametrize("scorer", [AddOne(), AddOne("kl"), DropOne(), DropOne("kl"), Greedy()], ids=lambda s: s.label)
def test_on_a_model_nothing_but_sharing_differs(scorer: Scorer) -> None:
    shared, whole = Probe(model(), ITEMS, BASE), Probe(model(), ITEMS, BASE, memory=0)
    assert scorer.score(shared) == pytest.approx(scorer.score(whole), abs=1e-5)
    assert shared.evaluations < whole.evaluations


def test_few_rounds_of_greedy_cost_less_than_all_pairs() -> None:
    probe = Probe(model(), ITEMS, BASE, memory=0)
    Greedy().choose(probe, 2)
    first = 1 + LAYERS
    assert first < probe.evaluations / len(ITEMS) <= first + LAYERS - 1
    AddOne().score(probe)  # the first round was this
    assert probe.evaluations / len(ITEMS) <= first + LAYERS - 1


def test_scorers_tell_how_far_they_are() -> None:
    told: list[tuple[str, int, int]] = []
    table = dict.fromkeys(SETS, 0.0)
    probe = probe_of(table)
    probe._progress = lambda *how: told.append(how)
    AddOne().score(probe)
    Greedy().choose(probe, 2)
    assert told[:LAYERS] == [("add_one(metric=nll)", done, LAYERS) for done in range(1, LAYERS + 1)]
    assert told[LAYERS:] == [("greedy(metric=nll)", 1, 2), ("greedy(metric=nll)", 2, 2)]


@pytest.mark.parametrize(
    ("layers", "count", "wanted"),
    [
        (8, 4, (1, 3, 5, 7)),
        (30, 15, tuple(range(1, 30, 2))),
        (30, 8, (1, 5, 9, 13, 17, 21, 25, 29)),  # the paper's every fourth layer
        (30, 4, (1, 9, 17, 25)),
        (8, 5, (0, 2, 4, 5, 7)),  # no step gives five: the middles of fifths
        (8, 8, tuple(range(8))),
        (8, 1, (1,)),
        (8, 0, ()),
    ],
)
def test_fixed_patterns(layers: int, count: int, wanted: tuple[int, ...]) -> None:
    probe = Probe(model(layers), ITEMS, BASE)
    assert Fixed().choose(probe, count) == wanted
    assert probe.evaluations == 0


@pytest.mark.parametrize("layers", [1, 5, 8])
def test_fixed_layers_are_the_controls_of_a_search(layers: int) -> None:
    probe = Probe(model(layers), ITEMS, BASE)
    base, held = Base(3, 1, "both"), [0.0] * layers
    for count in range(layers + 1):
        chosen = Fixed().choose(probe, count)
        some = Candidate(base, tuple(range(count)), ("add_one",), layers, probe.num_heads)
        assert chosen == fixed(some, list(range(layers))).chosen
        assert len(set(chosen)) == count
        for layer in chosen:
            held[layer] += 1  # type: ignore[index]
    assert Fixed().score(probe) == tuple(held)


def test_random_sets_differ_by_seed_and_grow() -> None:
    probe = Probe(model(8), ITEMS, BASE)
    chosen = [Random(seed).choose(probe, 4) for seed in range(10)]
    assert chosen == [Random(seed).choose(probe, 4) for seed in range(10)]
    assert len(set(chosen)) > 5
    assert set(Random(3).choose(probe, 2)) < set(Random(3).choose(probe, 4))
    drawn = [layer for seed in range(100) for layer in Random(seed).choose(probe, 4)]
    assert all(30 < drawn.count(layer) < 70 for layer in range(8))  # of 50 expected, four deviations
    assert probe.evaluations == 0


def test_a_scorer_by_name_and_back() -> None:
    names = ("add_one", "drop_one", "fixed", "gate_gradient", "greedy", "head_gate", "lazy_ratio", "random")
    assert set(names) <= set(scorer_names())
    for name in names:
        scorer = parse_scorer(name)
        assert scorer == get_scorer(name)() == parse_scorer(scorer.to_dict()) == parse_scorer(scorer)
    assert parse_scorer({"name": "add_one", "metric": "kl"}) == AddOne("kl")
    assert AddOne("kl").label == "add_one(metric=kl)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_scorer("ad_one"), "unknown scorer 'ad_one'. Did you mean 'add_one'?"),
        (
            lambda: parse_scorer({"metric": "kl"}),
            "scorer: expected the name of a scorer, or a mapping with its name, got",
        ),
        (
            lambda: parse_scorer({"name": "add_one", "metrik": 1}),
            "unknown field 'add_one.metrik'. Did you mean 'add_one.m",
        ),
        (lambda: AddOne("exact"), "AddOne.metric: unknown value 'exact'."),
        (lambda: Greedy("l"), "Greedy.metric: unknown value 'l'."),
        (lambda: Random(-1), "Random.seed: expected an int >= 0, got -1. "),
        (
            lambda: parse_scorer({"name": "fixed", "every": 2}),
            "unknown field 'fixed.every'",
        ),
        (lambda: parse_scorer({"name": "lazy_ratio", "recent": 0}), "lazy_ratio.recent: expected an int >= 1, got 0. "),
        (lambda: parse_scorer({"name": "head_gate", "at": 0.5}), "head_gate.at: expected 0 or 1, got 0.5. "),
    ],
)
def test_what_is_no_scorer_is_refused(make: Callable[[], Scorer], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_units_that_a_model_has_not_are_refused() -> None:
    probe = Probe(model(), ITEMS, BASE)
    for scorer in (Random(), Fixed(), Greedy()):
        with pytest.raises(UserError, match="count: expected at most 5, the model's units, got 6. Choose fewer units."):
            scorer.choose(probe, 6)
        with pytest.raises(UserError, match="count: expected an int >= 0, got -1"):
            scorer.choose(probe, -1)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(UserError, match="scorer name 'random' is taken by"):

        @register_scorer
        class Second(Random):
            pass
