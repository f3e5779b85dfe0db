"""Each architecture, under each composition: cached, padded generation equals a cache-free loop-built reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import AttentionMaskInterface, PreTrainedModel

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.reference import FULL, SIX, Composition, Mutation, reference
from hf.zoo import ARCHITECTURES, BY_TYPE, Architecture
from swaa.hf import masks
from swaa.hf.books import CacheBooks

LENGTHS = (12, 9, 5)
"""Tokens of the prompts; the batch is padded on the left to the longest."""
NEW = 8
BY_NAME = {composition.name: composition for composition in SIX}


def prompts() -> list[Tensor]:
    return rows_of(*LENGTHS)


@cache
def model_of(model_type: str) -> PreTrainedModel:
    return BY_TYPE[model_type].build()


@dataclass(frozen=True)
class Generated:
    tokens: Tensor  # [B, NEW]
    logits: Tensor  # [B, NEW, V]


def generate(architecture: Architecture, composition: Composition) -> Generated:
    """Greedy generation from the left-padded batch, with the model's default KV cache."""
    model = model_of(architecture.model_type)
    with swaa.apply_policy(model, composition.policy), torch.no_grad():
        out = model.generate(
            **padded(prompts()),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return Generated(out.sequences[:, -NEW:], torch.stack(out.logits, 1))


from_cache = cache(generate)
"""The same for tests that break nothing."""


def recompute(
    architecture: Architecture,
    composition: Composition,
    generated: Generated,
    off: Mutation | None = None,
    *,
    native: bool = True,
) -> Generated:
    """The same tokens' logits and argmaxes, of each row alone, without padding and without a cache.

    The whole row is computed at once. What a token is predicted from lies before it, so if the argmaxes equal the
    generated tokens, a step-by-step recomputation would have generated the same.
    """
    model = model_of(architecture.model_type)
    logits = []
    for row, new in zip(prompts(), generated.tokens, strict=True):
        mutation = off or Mutation()
        if mutation.padding:  # in slots
            mutation = Mutation(padding=max(LENGTHS) - len(row))
        own = architecture.native if native else {}
        with (
            reference(model, composition.meaning, prompt=len(row), native=own, mutation=mutation),
            torch.no_grad(),
        ):
            out = model(torch.cat([row, new[:-1]]).unsqueeze(0), use_cache=False)
        logits.append(out.logits[0, len(row) - 1 :])
    stacked = torch.stack(logits)
    return Generated(stacked.argmax(-1), stacked)


def assert_equal(generated: Generated, expected: Generated) -> None:
    assert generated.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(generated.logits, expected.logits, **CLOSE)


def possible(architecture: Architecture, composition: Composition) -> bool:
    return not (architecture.drops_kwargs and composition.by_phase)


CASES = [
    pytest.param(architecture, composition, id=f"{architecture}-{composition}")
    for architecture in ARCHITECTURES
    for composition in SIX
    if possible(architecture, composition)
]


def test_the_list_is_long_enough() -> None:
    whole = [architecture for architecture in ARCHITECTURES if not architecture.drops_kwargs]
    assert len(whole) >= 24


@pytest.mark.parametrize(("architecture", "composition"), CASES)
def test_generation_equals_the_loop_reference(architecture: Architecture, composition: Composition) -> None:
    generated = from_cache(architecture, composition)
    assert_equal(generated, recompute(architecture, composition, generated))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_full_attention_equals_the_models_own(architecture: Architecture) -> None:
    """Native windows, chunks, softcap and sink logits included; and the reference has them too."""
    model = model_of(architecture.model_type)
    batch = padded(prompts())
    with torch.no_grad():
        eager = model(**batch).logits
        with swaa.apply_policy(model, FULL.policy):
            ours = model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours[real], eager[real], **CLOSE)
    generated = from_cache(architecture, FULL)
    assert_equal(generated, recompute(architecture, FULL, generated))


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a.native], ids=str)
def test_the_native_mask_is_what_makes_the_difference(architecture: Architecture) -> None:
    generated = from_cache(architecture, FULL)
    with pytest.raises(AssertionError):
        assert_equal(generated, recompute(architecture, FULL, generated, native=False))


@pytest.mark.parametrize(("architecture", "composition"), CASES)
def test_the_policy_changes_the_logits(architecture: Architecture, composition: Composition) -> None:
    """Of the row without padding, from its first new token on."""
    full, restricted = from_cache(architecture, FULL).logits[0, 0], from_cache(architecture, composition).logits[0, 0]
    assert (full - restricted).abs().max() > 100 * CLOSE["atol"]


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a.drops_kwargs], ids=str)
def test_where_kwargs_are_dropped_phases_are_refused(architecture: Architecture) -> None:
    with pytest.raises(swaa.UserError, match="does not pass keyword arguments on to attention"):
        from_cache(architecture, BY_NAME["fa_decode"])


MUTATIONS = [
    ("naive", Mutation(window=1)),
    ("half_layers", Mutation(window=-1)),
    ("fa_decode", Mutation(prompt=1)),
    ("fa_decode", Mutation(prompt=-1)),
    ("sinks", Mutation(padding=1)),
]


@pytest.mark.parametrize(
    ("architecture", "name", "off"),
    [
        pytest.param(architecture, name, off, id=f"{architecture}-{off}")
        for architecture in ARCHITECTURES
        for name, off in MUTATIONS
        if possible(architecture, BY_NAME[name])
    ],
)
def test_a_mutated_reference_is_not_equal(architecture: Architecture, name: str, off: Mutation) -> None:
    generated = from_cache(architecture, BY_NAME[name])
    with pytest.raises(AssertionError):
        assert_equal(generated, recompute(architecture, BY_NAME[name], generated, off))


class TestMutatedCode:
    """The same comparison, with swaa itself broken on purpose."""

    architecture = BY_TYPE["llama"]

    def assert_caught(self, name: str) -> None:
        generated = generate(self.architecture, BY_NAME[name])
        with pytest.raises(AssertionError):
            assert_equal(generated, recompute(self.architecture, BY_NAME[name], generated))

    @pytest.mark.parametrize("composition", SIX, ids=str)
    def test_padding_ignored(self, monkeypatch: pytest.MonkeyPatch, composition: Composition) -> None:
        generate(self.architecture, composition)  # by now it is registered
        registered, plan = AttentionMaskInterface._global_mapping, masks.plan_mask
        monkeypatch.setitem(registered, "swaa", lambda **kwargs: plan(**(kwargs | {"attention_mask": None})))
        self.assert_caught(composition.name)

    @pytest.mark.parametrize("by", [-1, 1])
    @pytest.mark.parametrize("name", ["fa_decode", "sinks_fa_decode_half_layers"])
    def test_phase_off_by_one(self, monkeypatch: pytest.MonkeyPatch, name: str, by: int) -> None:
        layout = masks.TokenLayout.padded

        def wrong(*args: object, prompt_lengths: Tensor | None, **rest: object) -> object:
            lengths = None if prompt_lengths is None else prompt_lengths + by
            return layout(*args, prompt_lengths=lengths, **rest)  # type: ignore[arg-type]

        monkeypatch.setattr(masks.TokenLayout, "padded", wrong)
        in_cache = CacheBooks._prompt_lengths  # which a cache that drops keys goes by, once it holds some
        monkeypatch.setattr(
            CacheBooks, "_prompt_lengths", lambda *args: None if (p := in_cache(*args)) is None else p + by
        )
        self.assert_caught(name)

    @pytest.mark.parametrize("name", ["naive", "sinks", "fa_decode", "half_layers", "by_heads"])
    def test_window_off_by_one(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr(swaa.SlidingWindow, "visible", lambda self, q, k: q - k <= self.window_size)
        self.assert_caught(name)
