"""Windows that shrink to the target: where they begin, that they only shrink, and that they only ever widen a mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import swaa
from oracle import Atom, Contiguous, Model, Recipe, Union
from strategies import bound_layer, build, layout_of, recipes
from swaa.compiler.dense import dense_mask
from swaa.config import Annealing
from swaa.engine.tuning.anneal import annealed
from swaa.policies import AttentionPolicy, bind

MODEL = Model(layers=3, heads=2)
LENGTH = 24
SCENE = Contiguous(queries=LENGTH, keys=LENGTH, prompts=LENGTH // 2)
TARGET = swaa.SlidingWindow(4)
SINKS = swaa.SinkTokens(3)  # which no window is part of


def window_of(policy: AttentionPolicy, length: int = 600) -> int:
    """Keys that the last query of many sees, itself among them."""
    layer = bind(policy, 1, 1).layers[0]
    return int(dense_mask(layer, layout_of(Contiguous(1, length, offset=length - 1))).sum())


def windows(annealing: Annealing, num_steps: int) -> list[int]:
    return [window_of(annealed(TARGET, annealing, step, num_steps)) for step in range(num_steps)]


def test_a_window_starts_where_it_shall_and_shrinks_by_the_same_factor_every_step() -> None:
    assert windows(Annealing(start_window=512, share=0.5), 18) == [512, 256, 128, 64, 32, 16, 8, 4, 4, *[4] * 9]
    assert windows(Annealing(start_window=512, share=1.0, end_window=32), 4) == [512, 256, 128, 64]


@pytest.mark.parametrize(
    ("share", "num_steps", "annealed_steps"), [(0.5, 10, 5), (0.5, 11, 6), (1.0, 7, 7), (0.1, 4, 1)]
)
def test_after_its_share_of_the_steps_the_policy_is_the_target_itself(
    share: float, num_steps: int, annealed_steps: int
) -> None:
    annealing = Annealing(start_window=300, share=share)
    targets = [annealed(SINKS, annealing, step, num_steps) is SINKS for step in range(num_steps)]
    assert targets == [False] * annealed_steps + [True] * (num_steps - annealed_steps)


def test_without_annealing_every_step_has_the_target() -> None:
    assert all(annealed(TARGET, None, step, 5) is TARGET for step in range(5))


@given(start=st.integers(1, 600), end=st.integers(1, 600), share=st.floats(0.01, 1), num_steps=st.integers(1, 30))
@settings(max_examples=settings.default.max_examples // 20)
def test_windows_never_grow(start: int, end: int, share: float, num_steps: int) -> None:
    start, end = max(start, end), min(start, end)
    sizes = windows(Annealing(start, share=share, end_window=end), num_steps)
    assert sizes[0] == max(start, 4)
    assert sizes == sorted(sizes, reverse=True)
    assert all(size == 4 or size >= end for size in sizes)


def mask(policy: AttentionPolicy, layer: int) -> torch.Tensor:
    """[H, Q, K] of one sample: prompt and answer."""
    bound = bind(policy, MODEL.layers, MODEL.heads).layers[layer]
    return dense_mask(bound, layout_of(SCENE))[0].expand(MODEL.heads, LENGTH, LENGTH)


@given(recipe=recipes(MODEL), start=st.integers(1, LENGTH), layer=st.integers(0, MODEL.layers - 1))
@settings(max_examples=settings.default.max_examples // 40)
def test_every_annealed_policy_shows_all_that_the_next_steps_and_the_targets_do(
    recipe: Recipe, start: int, layer: int
) -> None:
    bound_layer(recipe, MODEL, layer)  # draws another one where some part would fall to nobody
    target, num_steps = build(recipe), 6
    annealing = Annealing(start, share=0.9)
    wider = torch.ones(MODEL.heads, LENGTH, LENGTH).tril() == 1
    for step in range(num_steps):
        size = max(1, round(start ** (1 - step / 5.4)))  # start_window at step 0, one token at 0.9 of the steps
        added = recipe if step >= 6 * 0.9 else Union((recipe, Atom("SlidingWindow", (size,))))
        shown = mask(annealed(target, annealing, step, num_steps), layer)
        assert shown.tolist() == oracle.mask(added, SCENE, MODEL, layer)[0]
        assert not bool((shown & ~wider).any())
        wider = shown
    least = torch.tensor(oracle.mask(recipe, SCENE, MODEL, layer)[0])
    assert not bool((least & ~wider).any())
