"""``PolicyHandle.using``: another policy for a while, with nothing installed and nothing taken off."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.reference import SIX, Composition, reference
from hf.zoo import BY_TYPE

BY_NAME = {composition.name: composition for composition in SIX}
NAIVE, SINKS, HALF = BY_NAME["naive"], BY_NAME["sinks"], BY_NAME["half_layers"]
BATCH = padded(rows_of(12, 12))


@pytest.fixture
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**BATCH, use_cache=False).logits


def expected(model: PreTrainedModel, composition: Composition) -> Tensor:
    with reference(model, composition.meaning):
        return logits(model)


def test_policies_change_places_and_come_back(model: PreTrainedModel) -> None:
    wanted = {composition.name: expected(model, composition) for composition in (NAIVE, SINKS, HALF)}

    def runs_under(composition: Composition) -> None:
        torch.testing.assert_close(logits(model), wanted[composition.name], **CLOSE)
        assert swaa.saved_policy(model.config) == composition.policy

    with swaa.apply_policy(model, NAIVE.policy) as handle:
        for _ in range(2):
            runs_under(NAIVE)
            with handle.using(SINKS.policy):
                runs_under(SINKS)
                with handle.using(HALF.policy):
                    runs_under(HALF)
                    with handle.using(NAIVE.policy):
                        runs_under(NAIVE)
                    runs_under(HALF)
                runs_under(SINKS)
        runs_under(NAIVE)
        assert handle.policy == NAIVE.policy
    assert swaa.saved_policy(model.config) is None


def test_an_exception_brings_the_former_policy_back(model: PreTrainedModel) -> None:
    with swaa.apply_policy(model, NAIVE.policy) as handle:
        before = logits(model)
        with pytest.raises(KeyError, match="mine"), handle.using(SINKS.policy), handle.using(HALF.policy):
            raise KeyError("mine")
        assert swaa.saved_policy(model.config) == NAIVE.policy
        assert torch.equal(logits(model), before)


def test_nothing_is_installed(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything() -> list[object]:
        hooks = [(list(module._forward_pre_hooks), list(module._forward_hooks)) for module in model.modules()]
        return [hooks, sorted(model.state_dict()), model.config._attn_implementation]

    def refuse(*_: object) -> None:
        raise AssertionError("the attention implementation was set")

    with swaa.apply_policy(model, NAIVE.policy) as handle:
        before = everything()
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "set_attn_implementation", refuse)
            patch.setattr(type(model.base_model), "set_attn_implementation", refuse)
            with handle.using(SINKS.policy):
                assert everything() == before
        assert everything() == before


@pytest.mark.parametrize(("kernel", "evict"), [("dense", False), ("blockwise", True)])
def test_kernel_and_eviction_stay(model: PreTrainedModel, kernel: str, evict: bool) -> None:
    with swaa.apply_policy(model, NAIVE.policy, kernel=kernel, evict=evict) as handle:
        with handle.using("SlidingWindow(3)"):
            assert (model.config.swaa["kernel"], model.config.swaa["evict"]) == (kernel, evict)
            with torch.no_grad():
                cache = model(**BATCH).past_key_values
            assert cache.layers[0].keys.shape[2] == (2 if evict else 12)
        assert swaa.saved_policy(model.config) == NAIVE.policy


def test_full_attention_teaches_beside_the_same_weights(model: PreTrainedModel) -> None:
    """The teacher's pass stands between the student's forward and backward pass."""
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    full = BY_TYPE["llama"].build().eval()
    teacher = logits(full)

    def gradient(between: bool) -> list[Tensor]:
        wrapped.zero_grad()
        loss = wrapped(**BATCH, use_cache=False).logits.square().mean()
        if between:
            with handle.using(swaa.FullAttention()), wrapped.disable_adapter():
                torch.testing.assert_close(logits(wrapped), teacher, **CLOSE)
        loss.backward()
        return [p.grad.clone() for p in wrapped.parameters() if p.grad is not None]

    with swaa.apply_policy(wrapped, SINKS.policy) as handle:
        alone = gradient(between=False)
        assert alone
        for one, other in zip(gradient(between=True), alone, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("SlidingWindow(4).on_layers([7])", "layer 7 is out of range: this model has 3 layers"),
        ("SlidingWindow(4).on_heads([4])", "head 4 is out of range: this model has 4 heads"),
        ("SlidingWindow(0)", "SlidingWindow.window_size: expected an int >= 1"),
    ],
)
def test_what_the_model_lacks_is_refused_and_nothing_changes(model: PreTrainedModel, policy: str, message: str) -> None:
    handle = swaa.apply_policy(model, NAIVE.policy)
    with pytest.raises(swaa.UserError, match=message), handle.using(policy):
        raise AssertionError("entered")
    assert swaa.saved_policy(model.config) == NAIVE.policy
    handle.remove()


def test_a_removed_policy_lends_no_model(model: PreTrainedModel) -> None:
    handle = swaa.apply_policy(model, NAIVE.policy)
    handle.remove()
    message = r"SlidingWindow\(5\): the policy was removed from the model. Apply it again, with apply_policy."
    with pytest.raises(swaa.UserError, match=message), handle.using(SINKS.policy):
        raise AssertionError("entered")


def test_a_policy_below_another_lends_no_model(model: PreTrainedModel) -> None:
    lower = swaa.apply_policy(model, NAIVE.policy)
    with swaa.apply_policy(model, SINKS.policy) as upper:
        with (
            pytest.raises(swaa.UserError, match=r"SlidingWindow\(5\): another policy was applied on top of this one."),
            lower.using(HALF.policy),
        ):
            raise AssertionError("entered")
        with upper.using(HALF.policy):
            assert swaa.saved_policy(model.config) == HALF.policy
    with lower.using(HALF.policy):
        assert swaa.saved_policy(model.config) == HALF.policy
    assert swaa.saved_policy(model.config) == NAIVE.policy


def test_removing_inside_a_block_is_refused(model: PreTrainedModel) -> None:
    handle = swaa.apply_policy(model, NAIVE.policy)
    message = r"SlidingWindow\(5\): cannot be removed inside a block of using\(\). Leave the block, then remove the"
    with handle.using(SINKS.policy):
        with pytest.raises(swaa.UserError, match=message):
            handle.remove()
        assert swaa.saved_policy(model.config) == SINKS.policy
    assert swaa.saved_policy(model.config) == NAIVE.policy
    handle.remove()
    assert swaa.saved_policy(model.config) is None


def test_a_policy_applied_inside_a_block_must_go_before_its_end(model: PreTrainedModel) -> None:
    before = model.config._attn_implementation
    handle = swaa.apply_policy(model, NAIVE.policy)
    with (
        pytest.raises(
            swaa.UserError, match="another policy was applied on top of this one. Remove policies in reverse"
        ),
        handle.using(SINKS.policy),
    ):
        left = swaa.apply_policy(model, HALF.policy)
    assert swaa.saved_policy(model.config) == HALF.policy
    left.remove()
    handle.remove()  # and all is well again
    assert swaa.saved_policy(model.config) is None
    assert model.config._attn_implementation == before
