"""Candidates, their controls, their costs and the budget."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.compiler.shape import ModelShape
from swaa.compiler.timing import CPU_FLOAT32
from swaa.config import Budget, Space
from swaa.errors import UserError
from swaa.policies import FullAttention, SlidingWindow, bind
from swaa.search.budget import CostModel, Costs, check_met, excess
from swaa.search.choices import Unit, spread
from swaa.search.folder import recipe_file
from swaa.search.space import (
    Base,
    Candidate,
    all_units,
    bases,
    check_counts,
    fixed,
    merged,
    patterned,
    randomly,
)

few = settings(max_examples=settings.default.max_examples // 20)
LAYERS, HEADS = 5, 4
SHAPE = ModelShape(num_layers=LAYERS, num_heads=HEADS, num_kv_heads=2, head_dim=8, bytes_per_value=4)
SMOLLM2 = ModelShape(num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, bytes_per_value=4)
BASE = Base(8, 2, "both")
some_bases = st.builds(Base, st.integers(1, 9), st.integers(0, 3), st.sampled_from(["both", "prefill"]))
layers = st.sets(st.integers(0, LAYERS - 1)).map(lambda chosen: tuple(sorted(chosen)))
heads = st.sets(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, HEADS - 1))).map(lambda some: tuple(sorted(some)))


def candidate(chosen: tuple[Unit, ...], base: Base = BASE, origin: str = "add_one") -> Candidate:
    return Candidate(base, chosen, (origin,), LAYERS, HEADS)


def sees(base: Base, phase: str, q: int, k: int) -> bool:
    """What a query of a unit that is not chosen sees, written out."""
    if base.phase == "prefill" and phase == "decode":
        return True
    return q - k < base.window or k < base.sinks


@few
@given(st.one_of(layers, heads), some_bases)
def test_chosen_units_see_everything_and_the_others_what_the_base_says(chosen: tuple[Unit, ...], base: Base) -> None:
    bound = bind(candidate(chosen, base).policy, LAYERS, HEADS)
    layout = TokenLayout.contiguous(16, prompt_lengths=12)
    for layer in range(LAYERS):
        mask_HQK = dense_mask(bound.layers[layer], layout)[0].expand(HEADS, 16, 16)
        for head in range(HEADS):
            is_full = layer in chosen or (layer, head) in chosen
            expected = [
                [k <= q and (is_full or sees(base, "decode" if q >= 12 else "prefill", q, k)) for k in range(16)]
                for q in range(16)
            ]
            assert mask_HQK[head].tolist() == expected


def test_a_space_has_a_base_for_each_combination() -> None:
    space = Space(windows=(8, 16), sinks=(0, 4), phases=("both", "prefill"), counts=(0,))
    assert len(set(bases(space))) == 8
    assert bases(space)[0].policy == SlidingWindow(8)
    assert all_units(space, SHAPE) == [0, 1, 2, 3, 4]
    assert all_units(Space(windows=(8,), counts=(0,), unit="heads"), SHAPE)[4:6] == [(1, 0), (1, 1)]


def test_more_units_than_the_model_has_are_refused() -> None:
    check_counts(Space(windows=(8,), counts=(5,)), SHAPE)
    check_counts(Space(windows=(8,), counts=(20,), unit="heads"), SHAPE)
    with pytest.raises(UserError, match=r"space.counts\[1\]: expected at most the model's 5 layers, got 6. Lower it."):
        check_counts(Space(windows=(8,), counts=(5, 6)), SHAPE)


@pytest.mark.parametrize(
    ("count", "expected"), [(15, range(1, 30, 2)), (8, range(1, 30, 4)), (4, range(1, 30, 8)), (30, range(30))]
)
def test_fixed_patterns_are_the_papers_where_there_is_one(count: int, expected: range) -> None:
    assert spread(30, count) == tuple(expected)


@few
@given(st.integers(1, 60), st.data())
def test_fixed_patterns_and_random_sets_have_so_many_units(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, size))
    places = spread(size, count)
    assert len(set(places)) == count
    assert all(0 <= place < size for place in places)
    gaps = [later - earlier for earlier, later in itertools.pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    of = Candidate(BASE, tuple(range(count)), ("x",), size, HEADS)
    draws = [randomly(of, list(range(size)), draw, seed=3) for draw in range(2)]
    assert draws[0] == randomly(of, list(range(size)), 0, seed=3)
    assert all(len(set(one.chosen)) == count and list(one.chosen) == sorted(one.chosen) for one in draws)
    assert fixed(of, list(range(size))).chosen == places


def test_random_sets_differ_by_draw_and_by_seed() -> None:
    of = Candidate(BASE, tuple(range(8)), ("x",), 30, 9)
    units = all_units(Space(windows=(8,), counts=(8,)), SMOLLM2)
    found = [randomly(of, units, draw, seed) for draw in range(10) for seed in range(2)]
    assert len({one.chosen for one in found}) == 20
    assert len({one.name for one in found}) == 20, "the test's folder knows a recipe by its name"


def test_a_pattern_names_layers() -> None:
    assert patterned(BASE, "1::2", SHAPE, "p").chosen == (1, 3)
    with pytest.raises(UserError, match=r"controls.patterns\[0\]: layer 7 is out of range: this model has 5"):
        patterned(BASE, "7:8", SHAPE, "controls.patterns[0]")


def test_patterns_that_name_other_layers_have_files_of_their_own() -> None:
    patterns = ["1:3", "1,3", "::2", "0,2", ":2", "2:", "-2:", ":-2", "1::2"]
    names = [patterned(BASE, pattern, SHAPE, "p").name for pattern in patterns]
    assert len({recipe_file(name) for name in names}) == len(patterns)


def test_equal_choices_are_one_candidate_of_all_that_chose_it() -> None:
    one, other, control = candidate((1, 2)), candidate((1, 2), origin="drop_one"), candidate((1, 2), origin="every")
    far = candidate((1, 3), origin="drop_one")
    found = merged([one, far, other, control, one])
    assert [(each.chosen, each.origins) for each in found] == [
        ((1, 2), ("add_one", "drop_one", "every")),
        ((1, 3), ("drop_one",)),
    ]
    assert found[0].name == "add_one 2 w8-s2-both"
    assert candidate(()).name == "none w8-s2-both"


def test_costs_are_counted() -> None:
    model = CostModel(SHAPE, 100, 5, CPU_FLOAT32, "cpu", "auto")
    costs = model.of_candidate(candidate((1, 3)))
    kept = 8 - 1 + 2  # by layers that slide: the next query's window without itself, and the sinks
    assert costs.full_layers == 2
    assert costs.kv_share == pytest.approx((2 * 100 + 3 * kept) / (5 * 100))
    assert model.of_candidate(candidate((1, 3), Base(8, 2, "prefill"))).kv_share == 1
    long = CostModel(SMOLLM2, 8_192, 5, CPU_FLOAT32, "cpu", "auto")
    ratios = [long.of_candidate(Candidate(BASE, tuple(range(n)), ("x",), 30, 9)).time_ratio for n in (0, 8, 30)]
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.6


def test_a_budget_is_all_of_its_limits() -> None:
    costs = Costs(4, 0.5, 0.3)
    assert excess(Budget(), costs) == 0
    assert excess(Budget(max_full_layers=4, max_time_ratio=0.5, max_kv_share=0.3), costs) == 0
    assert excess(Budget(max_full_layers=3), costs) == pytest.approx(1 / 3)
    assert excess(Budget(max_time_ratio=0.4, max_kv_share=0.3), costs) == pytest.approx(0.25)
    assert excess(Budget(max_full_layers=0), costs) == 4


def test_what_nothing_meets_is_told_with_the_nearest() -> None:
    known = {"far": Costs(8, 0.9, 0.9), "near": Costs(4, 0.51234, 0.3)}
    check_met(Budget(max_full_layers=4), known)
    expected = (
        "budget: nothing in the space meets max_time_ratio: 0.4, max_kv_share: 0.3. The nearest is near: "
        "time_ratio 0.512. Raise max_time_ratio to 0.513, or add smaller windows or counts to the space."
    )
    with pytest.raises(UserError) as error:
        check_met(Budget(max_time_ratio=0.4, max_kv_share=0.3), known)
    assert str(error.value) == expected


def test_full_attention_is_the_choice_of_all_units() -> None:
    assert candidate((0, 1, 2, 3, 4)).policy == FullAttention()
