"""The plan of a training run: every sample once an epoch, whatever shares the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.engine.tuning.steps import Micro, Step, pack, plan_steps

EIGHT = {"batch_size": 8, "micro_batch_size": 2, "pack_length": None, "world_size": 1, "epochs": 1, "seed": 0}


@dataclass(frozen=True)
class Case:
    lengths: list[int]
    answers: list[int]
    options: dict[str, Any]

    def plan(self, **changes: Any) -> list[Step]:
        return plan_steps(self.lengths, self.answers, **{**self.options, **changes})


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.integers(2, 40), min_size=1, max_size=25))
    answers = [draw(st.integers(1, length - 1)) for length in lengths]
    options = {
        "batch_size": draw(st.integers(1, 12)),
        "micro_batch_size": draw(st.integers(1, 5)),
        "pack_length": draw(st.none() | st.integers(max(lengths), 100)),
        "world_size": draw(st.integers(1, 5)),
        "epochs": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 1000)),
    }
    return Case(lengths, answers, options)


def trained(step: Step) -> Counter[int]:
    """How often each sample of a step counts."""
    counter: Counter[int] = Counter()
    for rank in step.ranks:
        for micro in rank:
            if micro.counts:
                for row in micro.rows:
                    counter.update(row)
    return counter


def next_fit(lengths: Sequence[int], room: int) -> int:
    """Rows that packing takes which closes a row for good once something does not fit."""
    rows, left = 0, 0
    for length in lengths:
        if length > left:
            rows, left = rows + 1, room
        left -= length
    return rows


@given(case=cases())
@settings(max_examples=settings.default.max_examples // 20)
def test_every_sample_comes_once_an_epoch(case: Case) -> None:
    number, size = len(case.lengths), case.options["batch_size"]
    each = -(-number // size)
    steps = case.plan()
    assert len(steps) == each * case.options["epochs"]
    for epoch in range(case.options["epochs"]):
        whole: Counter[int] = Counter()
        for place, step in enumerate(steps[epoch * each : (epoch + 1) * each]):
            members = trained(step)
            assert members.total() == min(size, number - place * size)
            assert step.answer_tokens == sum(case.answers[index] for index in members.elements())
            whole += members
        assert whole == dict.fromkeys(range(number), 1)


@given(case=cases())
@settings(max_examples=settings.default.max_examples // 20)
def test_every_process_runs_as_many_passes(case: Case) -> None:
    for step in case.plan():
        assert len(step.ranks) == case.options["world_size"]
        assert len({len(rank) for rank in step.ranks}) == 1
        assert len(step.ranks[0]) >= 1
        members = trained(step)
        fillers = [micro for rank in step.ranks for micro in rank if not micro.counts]
        assert all(row[0] in members for micro in fillers for row in micro.rows)
        assert all(len(micro.rows) == len(micro.rows[0]) == 1 for micro in fillers)
        if fillers:  # nobody is kept idle while another has samples to share in one pass
            assert {len(row) * len(micro.rows) for rank in step.ranks for micro in rank for row in micro.rows} == {1}


@given(case=cases())
@settings(max_examples=settings.default.max_examples // 20)
def test_rows_keep_to_their_sizes(case: Case) -> None:
    room = case.options["pack_length"]
    for step in case.plan():
        for micro in (micro for rank in step.ranks for micro in rank):
            if room is None:
                assert 1 <= len(micro.rows) <= case.options["micro_batch_size"]
                assert all(len(row) == 1 for row in micro.rows)
            else:
                assert len(micro.rows) == 1
                assert 0 < sum(case.lengths[index] for index in micro.rows[0]) <= room


@given(case=cases(), world=st.integers(1, 6), micro=st.integers(1, 6), room=st.none() | st.just(100))
@settings(max_examples=settings.default.max_examples // 20)
def test_the_same_samples_make_a_step_however_it_is_run(case: Case, world: int, micro: int, room: int | None) -> None:
    changed = case.plan(world_size=world, micro_batch_size=micro, pack_length=room)
    assert [trained(step) for step in changed] == [trained(step) for step in case.plan()]
    assert [step.answer_tokens for step in changed] == [step.answer_tokens for step in case.plan()]


@given(case=cases())
@settings(max_examples=settings.default.max_examples // 20)
def test_as_few_passes_as_can_be(case: Case) -> None:
    """A process has no more of them than its share of the least number of rows."""
    world, room = case.options["world_size"], case.options["pack_length"]
    for step in case.plan():
        members = sorted(trained(step), key=lambda index: -case.lengths[index])
        if room is None:
            least = -(-len(members) // case.options["micro_batch_size"])
        else:
            least = next_fit([case.lengths[index] for index in members], room)
        assert len(step.ranks[0]) <= -(-least // world)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), room=st.integers(30, 60))
def test_packing_fills_at_least_as_well_as_next_fit(lengths: list[int], room: int) -> None:
    rows = pack(range(len(lengths)), lengths, room)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= room for row in rows)
    assert len(rows) <= next_fit(sorted(lengths, reverse=True), room)


def test_packing_goes_back_to_rows_with_room() -> None:
    """Next fit would take four rows."""
    assert pack([0, 1, 2, 3, 4], [6, 4, 7, 3, 5], 10) == [(2, 3), (0, 1), (4,)]


def test_similar_lengths_run_together() -> None:
    (step,) = plan_steps([10, 90, 11, 91, 12, 92], [1] * 6, **{**EIGHT, "micro_batch_size": 3})
    assert step == Step(((Micro(((5,), (3,), (1,))), Micro(((4,), (2,), (0,)))),), 6)


def test_processes_share_the_tokens() -> None:
    (step,) = plan_steps([60, 50, 40, 30, 20, 10], [1] * 6, **{**EIGHT, "micro_batch_size": 1, "world_size": 2})
    loads = [sum([60, 50, 40, 30, 20, 10][micro.rows[0][0]] for micro in rank) for rank in step.ranks]
    assert sorted(loads) == [100, 110]


def test_one_long_sample_does_not_leave_all_others_to_the_next_process() -> None:
    (step,) = plan_steps([40, 2, 3, 4], [1] * 4, **{**EIGHT, "micro_batch_size": 1, "world_size": 2})
    assert step == Step(((Micro(((0,),)), Micro(((1,),))), (Micro(((3,),)), Micro(((2,),)))), 4)


def test_a_process_without_samples_repeats_the_shortest_for_company() -> None:
    (step,) = plan_steps([5, 3], [1, 2], **{**EIGHT, "world_size": 3})
    filler = Micro(((1,),), counts=False)
    assert step == Step(((Micro(((0,),)),), (Micro(((1,),)),), (filler,)), 3)


def test_a_pack_is_halved_sooner_than_a_process_is_idle() -> None:
    (step,) = plan_steps([4, 3, 2, 1], [1] * 4, **{**EIGHT, "pack_length": 10, "world_size": 2})
    assert step == Step(((Micro(((0, 2),)),), (Micro(((1, 3),)),)), 4)


def test_every_epoch_and_every_seed_has_its_own_order() -> None:
    lengths = list(range(2, 42))
    steps = plan_steps(lengths, [1] * 40, **{**EIGHT, "epochs": 3})
    epochs = [[frozenset(trained(step)) for step in steps[start : start + 5]] for start in (0, 5, 10)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = plan_steps(lengths, [1] * 40, **{**EIGHT, "seed": 1})
    assert [frozenset(trained(step)) for step in other] not in epochs
    assert plan_steps(lengths, [1] * 40, **{**EIGHT, "epochs": 3}) == steps
    assert plan_steps(lengths, [1] * 40, **EIGHT) == steps[:5]  # more epochs begin with the same steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pack_length": 8}, "pack_length: expected at least the longest sample's 9, got 8"),
        ({"batch_size": 0}, "batch_size: expected an int >= 1, got 0"),
        ({"world_size": 0}, "world_size: expected an int >= 1, got 0"),
        ({"micro_batch_size": 0}, "micro_batch_size: expected an int >= 1, got 0"),
        ({"epochs": 0}, "epochs: expected an int >= 1, got 0"),
        ({"lengths": []}, r"len\(lengths\): expected an int >= 1, got 0"),
        ({"answer_tokens": [1]}, "answer_tokens: expected 2, one per sample, got 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_steps(**{"lengths": [9, 2], "answer_tokens": [1, 1], **EIGHT, **changes})
