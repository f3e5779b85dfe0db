"""Retention against brute force: a key is dead exactly if no later query, however far, sees it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from oracle import Atom, Model, Place, Scope, Union
from strategies import ALL_ATOMS, ZOO_ATOMS, bound_layer, recipes
from swaa import FullAttention, Index, Predicate, SinkTokens, SlidingWindow
from swaa.compiler.retention import live_keys
from swaa.policies import bind, get_policy

TENTH = settings(max_examples=max(20, settings.default.max_examples // 10))
HORIZON = 80  # every parameter below is at most 20, so what happens later has happened by then


@dataclass(frozen=True)
class Question:
    """The keys of some samples, the next query of each, and the prompts' lengths (None: all decode)."""

    keys: tuple[tuple[int, ...], ...]
    next_positions: tuple[int, ...]
    prompts: tuple[int, ...] | None

    def ask(self, recipe: oracle.Recipe, model: Model, layer: int, kv_heads: int | None) -> torch.Tensor:
        return live_keys(
            bound_layer(recipe, model, layer),
            torch.tensor(self.keys),
            torch.tensor(self.next_positions),
            None if self.prompts is None else torch.tensor(self.prompts),
            num_kv_heads=kv_heads,
        )

    def truth(self, recipe: oracle.Recipe, model: Model, layer: int, b: int, head: int, key: int) -> bool:
        if key < 0:
            return False
        prompt = None if self.prompts is None else self.prompts[b]
        return oracle.is_live(recipe, model, layer, head, key, self.next_positions[b], prompt, HORIZON)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Some keys have been evicted, some slots hold padding; a chunk of the prompt may still be to come."""
    batch, length = draw(st.integers(1, 2)), draw(st.integers(1, 18))
    key = st.one_of(st.just(-1), st.integers(0, 24))
    keys = tuple(tuple(draw(st.lists(key, min_size=length, max_size=length))) for _ in range(batch))
    following = tuple(draw(st.integers(0, 24)) for _ in range(batch))
    prompts = tuple(draw(st.integers(0, 30)) for _ in range(batch)) if draw(st.booleans()) else None
    return Question(keys, following, prompts)


def check(recipe: oracle.Recipe, model: Model, layer: int, kv_heads: int, question: Question, exact: bool) -> None:
    live = question.ask(recipe, model, layer, kv_heads)
    by_head = live.shape[1] > 1
    assert live.shape[1] in (1, kv_heads)
    group = model.heads // kv_heads
    for b, row in enumerate(question.keys):
        for kv in range(live.shape[1]):
            heads = range(kv * group, kv * group + group) if by_head else range(model.heads)
            for i, key in enumerate(row):
                needed = any(question.truth(recipe, model, layer, b, head, key) for head in heads)
                assert bool(live[b, kv, i]) >= needed, "a key was called dead that a later query sees"
                if exact:
                    assert bool(live[b, kv, i]) == needed, "a key was kept that no later query sees"


MODELS = st.sampled_from([(Model(1, 1), 1), (Model(2, 4), 1), (Model(2, 4), 2), (Model(3, 4), 4)])


@TENTH
@given(st.data())
def test_no_composition_loses_a_key_that_is_needed(data: st.DataObject) -> None:
    model, kv_heads = data.draw(MODELS)
    recipe = data.draw(recipes(model, ALL_ATOMS))
    layer = data.draw(st.integers(0, model.layers - 1))
    check(recipe, model, layer, kv_heads, data.draw(questions()), exact=False)


@TENTH
@given(st.data())
def test_compositions_of_windows_and_sinks_keep_no_key_in_vain(data: st.DataObject) -> None:
    model, kv_heads = data.draw(MODELS)
    recipe = data.draw(recipes(model, ZOO_ATOMS))
    layer = data.draw(st.integers(0, model.layers - 1))
    check(recipe, model, layer, kv_heads, data.draw(questions()), exact=True)


WINDOW_AND_SINKS = Union((Atom("SlidingWindow", (6,)), Atom("SinkTokens", (2,))))
PAPER = {
    "naive": Atom("SlidingWindow", (6,)),
    "sinks": WINDOW_AND_SINKS,
    "full decode": Scope(WINDOW_AND_SINKS, Place(phase="prefill")),
    "half the layers": Scope(WINDOW_AND_SINKS, Place(layers="::2")),
    "best": Scope(WINDOW_AND_SINKS, Place(layers="::2", phase="prefill")),
    "windowed decode": Scope(WINDOW_AND_SINKS, Place(phase="decode")),
    "sinks, then a window": Scope(WINDOW_AND_SINKS, Place(phase="decode"), Atom("SinkTokens", (1,))),
}


@pytest.mark.parametrize("name", PAPER)
@settings(max_examples=max(20, settings.default.max_examples // 40))
@given(question=questions(), layer=st.integers(0, 1))
def test_exact_for_the_papers_recipes(name: str, question: Question, layer: int) -> None:
    check(PAPER[name], Model(2, 2), layer, 1, question, exact=True)


@pytest.mark.parametrize("name", ["FullAttention", "SlidingWindow", "SinkTokens"])  # the whole zoo: test_zoo.py
def test_exact_at_the_examples(name: str) -> None:
    for policy in get_policy(name).examples():
        sizes = [value for value in policy.parameters().values() if isinstance(value, int)]
        start, end = 350, 400 + sum(sizes)
        loop = oracle.ATOMS[name]
        live = live_keys(bind(policy, 1, 1).layers[0], torch.arange(start).unsqueeze(0), torch.tensor([start]))
        for key in range(start):
            needed = any(loop(q, key, *policy.parameters().values()) for q in range(start, end))
            assert bool(live[0, 0, key]) == needed, (policy, key)


def test_by_hand() -> None:
    layer = bind(SlidingWindow(4) | SinkTokens(2), 1, 1).layers[0]
    live = live_keys(layer, torch.tensor([[-1, 0, 1, 2, 3, 4, 5, 6, 7]]), torch.tensor([8]))
    assert live.tolist() == [[[False, True, True, False, False, False, True, True, True]]]


def test_heads_are_united_within_their_key_value_head_only() -> None:
    layer = bind(SlidingWindow(2).on_heads([0, 1], otherwise=SlidingWindow(5).on_heads([2])), 1, 4).layers[0]
    keys, following = torch.arange(8).unsqueeze(0), torch.tensor([8])
    assert live_keys(layer, keys, following).sum(-1).tolist() == [[8]], "head 3 is full attention"
    assert live_keys(layer, keys, following, num_kv_heads=2).sum(-1).tolist() == [[1, 8]]
    assert live_keys(layer, keys, following, num_kv_heads=4).sum(-1).tolist() == [[1, 1, 4, 8]]
    two_samples = live_keys(layer, keys, torch.tensor([8, 9]), num_kv_heads=4)
    assert two_samples.sum(-1).tolist() == [[1, 1, 4, 8], [0, 0, 3, 8]], "of one row of keys"


@pytest.mark.parametrize("wide", [0, 1])
def test_the_widest_head_of_a_group_decides(wide: int) -> None:
    layer = bind(SlidingWindow(5).on_heads([wide], otherwise=SlidingWindow(2)), 1, 4).layers[0]
    live = live_keys(layer, torch.arange(8).unsqueeze(0), torch.tensor([8]), num_kv_heads=2)
    assert live.sum(-1).tolist() == [[4, 1]]
    assert live_keys(layer, torch.arange(8).unsqueeze(0), torch.tensor([8])).sum(-1).tolist() == [[4]]


def test_the_prompts_last_token_is_the_last_under_its_policy() -> None:
    """Queries 2, 3 and 4 are left of a prompt of 5. Query 4 still sees key 1; only query 5 would see key 2."""
    layer = bind((~SlidingWindow(3)).in_phase("prefill", otherwise=~FullAttention()), 1, 1).layers[0]
    live = live_keys(layer, torch.arange(6).unsqueeze(0), torch.tensor([2]), torch.tensor([5]))
    assert live.tolist() == [[[True, True, False, False, False, False]]]
    live = live_keys(layer, torch.arange(6).unsqueeze(0), torch.tensor([5]), torch.tensor([5]))
    assert not live.any()


@dataclass(frozen=True, repr=False)
class Squared(Predicate):
    """Grows without bound: products of far positions must not wrap."""

    def visible(self, q: Index, k: Index) -> Index:
        return q * q * q >= k * 1000

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


@pytest.mark.parametrize("start", [0, 1, 5, 90])
def test_far_positions_do_not_overflow(start: int) -> None:
    live = live_keys(bind(Squared(), 1, 1).layers[0], torch.arange(9).unsqueeze(0), torch.tensor([start]))
    assert live.all()


@dataclass(frozen=True, repr=False)
class Unknown(Predicate):
    size: int

    def visible(self, q: Index, k: Index) -> Index:
        return (q - k) / 2 < self.size  # type: ignore[operator]

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


def test_what_intervals_do_not_know_keeps_every_key_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    layer = bind(Unknown(3), 1, 1).layers[0]
    with caplog.at_level(logging.WARNING, "swaa"):
        for step in range(3):
            live = live_keys(layer, torch.tensor([[-1, 0, 1]]), torch.tensor([50 + step]))
            assert live.tolist() == [[[False, True, True]]]
    assert caplog.messages == ["Unknown(3): __truediv__ of Interval is not known on intervals; all its keys are kept"]
