"""The kernel's reading of a predicate, pair by pair: the same as the dense mask, whatever an author writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from swaa import Index, Predicate, SinkTokens, SlidingWindow, UserError
from swaa.compiler.blocks import block_mask
from swaa.compiler.dense import dense_mask
from swaa.compiler.kernel import mask_mod
from swaa.compiler.layout import TokenLayout
from swaa.policies import AttentionPolicy, bind


class _OfThisFile(Predicate):
    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


@dataclass(frozen=True, repr=False)
class Scattered(_OfThisFile):
    """A pseudo-random choice of keys; its products leave the range of int32."""

    factor: int

    def visible(self, q: Index, k: Index) -> Index:
        return (q * q * self.factor + k * 2654435761 * self.factor) % 97 < 48


@dataclass(frozen=True, repr=False)
class Derived(_OfThisFile):
    """Keeps something that it worked out from its field."""

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "half", self.size // 2)

    def visible(self, q: Index, k: Index) -> Index:
        return q - k < self.half  # type: ignore[attr-defined,no-any-return]


@dataclass(frozen=True, repr=False)
class Switch(_OfThisFile):
    """The same for every pair."""

    on: bool

    def visible(self, q: Index, k: Index) -> Index:
        return self.on  # type: ignore[return-value]


@dataclass(frozen=True, repr=False)
class Numbers(_OfThisFile):
    """Forgets to compare."""

    period: int

    def visible(self, q: Index, k: Index) -> Index:
        return (q - k) % self.period


def pair_by_pair(policy: AttentionPolicy, layout: TokenLayout) -> torch.Tensor:
    layer = bind(policy, 1, 2).layers[0]
    sizes = (layout.batch_size, 2, layout.query_length, layout.key_length)
    grid = torch.meshgrid(*map(torch.arange, sizes), indexing="ij")
    return mask_mod(layer, layout)(*grid)


def dense(policy: AttentionPolicy, layout: TokenLayout) -> torch.Tensor:
    sizes = (layout.batch_size, 2, layout.query_length, layout.key_length)
    return dense_mask(bind(policy, 1, 2).layers[0], layout).expand(sizes)


@pytest.mark.parametrize(
    "policy",
    [
        Scattered(1103515245),
        ~Scattered(3) | SinkTokens(2),
        Derived(9),
        Switch(True),
        ~Switch(True),
        ~Switch(False) & SlidingWindow(3),
    ],
    ids=repr,
)
def test_the_kernel_agrees_with_the_dense_mask(policy: AttentionPolicy) -> None:
    layout = TokenLayout.contiguous(50)
    truth = dense(policy, layout)
    assert truth.dtype == torch.bool
    assert torch.equal(pair_by_pair(policy, layout), truth)
    layer = bind(policy, 1, 1).layers[0]
    blocks = block_mask(layer, layout, block_size=10).to_dense()[0, 0].bool()
    assert torch.equal(blocks, truth[0, 0].unflatten(0, (5, 10)).unflatten(-1, (5, 10)).any(-1).any(1))


@pytest.mark.parametrize("prompts", [[1, 2, 3], [[1, 1], [3, 0], [0, 2]]], ids=["samples", "documents"])
def test_samples_that_differ_in_their_prompts_only_share_a_row_of_documents(prompts: Any) -> None:
    shared = torch.tensor([[0, 1, 2, 0, 1]])
    lengths = torch.tensor(prompts)
    policy = SlidingWindow(2).in_phase("prefill", otherwise=SlidingWindow(1))
    layout = TokenLayout.packed(shared, prompt_lengths=lengths)
    truth = dense(policy, layout)
    assert torch.equal(truth, dense(policy, TokenLayout.packed(shared.expand(3, -1), prompt_lengths=lengths)))
    assert torch.equal(pair_by_pair(policy, layout), truth)


@pytest.mark.parametrize(
    "read", [dense, pair_by_pair, lambda *args: block_mask(bind(args[0], 1, 2).layers[0], args[1])]
)
@pytest.mark.parametrize("policy", [Numbers(4), ~Numbers(4)], ids=repr)
def test_numbers_are_no_truth_values(policy: AttentionPolicy, read: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="Numbers.visible: expected truth values, got .* Return a comparison, such as"):
        read(policy, TokenLayout.contiguous(6))


@pytest.mark.parametrize(("offset", "key_offset", "padded"), [(0, 0, 0), (5, 0, 0), (9, 4, 0), (5, 2, 7)])
def test_keys_without_gaps_are_counted_and_not_looked_up(offset: int, key_offset: int, padded: int) -> None:
    layout = TokenLayout.contiguous(6, offset=offset, key_offset=key_offset, prompt_lengths=8)
    layout = layout.pad_to(layout.query_length + padded, layout.key_length + padded)
    unread = dataclasses.replace(layout, key_positions_BK=torch.full_like(layout.key_positions_BK, 10**6))
    layer = bind(SlidingWindow(4).in_phase("prefill") | SinkTokens(6), 1, 1).layers[0]
    q, k = torch.arange(layout.query_length)[:, None], torch.arange(layout.key_length)
    zero = torch.tensor(0)
    expected = dense_mask(layer, layout)[0, 0]
    assert torch.equal(mask_mod(layer, unread)(zero, zero, q, k), expected)
    assert expected.any()


def test_keys_that_end_before_the_queries_are_looked_up() -> None:
    assert TokenLayout.contiguous(4, 4).first_key == 0
    assert TokenLayout.contiguous(4, 3).first_key is None
    assert TokenLayout.padded(torch.ones(1, 4)).first_key is None
