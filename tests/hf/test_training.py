"""Forward passes of prompt and answer together, and training: padding, packing, PEFT, checkpointing, gradients."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.distributed.utils import _apply_to_tensors
from transformers import DynamicCache, PreTrainedModel

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.reference import SIX, Composition, reference
from hf.zoo import BY_TYPE
from swaa.compiler import program

BY_NAME = {composition.name: composition for composition in SIX}
SINKS, PHASED, HEADS = BY_NAME["sinks"], BY_NAME["sinks_fa_decode_half_layers"], BY_NAME["by_heads"]
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # of transformers 6
COMPOSITIONS = pytest.mark.parametrize("composition", SIX, ids=str)
LENGTHS, PROMPTS = (12, 7, 9), torch.tensor([8, 3, 9])


@pytest.fixture
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


def reference_logits(model: torch.nn.Module, row: Tensor, composition: Composition, prompt: int = 1 << 30) -> Tensor:
    """[T, V], of one row."""
    with reference(model, composition.meaning, prompt=prompt):
        return model(row.unsqueeze(0), use_cache=False).logits[0]


@COMPOSITIONS
@pytest.mark.parametrize("extra", [0, 3])
def test_right_padding(model: PreTrainedModel, composition: Composition, extra: int) -> None:
    rows = rows_of(*LENGTHS)
    with torch.no_grad():
        with swaa.apply_policy(model, composition.policy):
            out = model(**padded(rows, side="right", extra=extra), prompt_lengths=PROMPTS).logits
        for row, prompt, got in zip(rows, PROMPTS, out, strict=True):
            expected = reference_logits(model, row, composition, int(prompt))
            torch.testing.assert_close(got[: len(row)], expected, **CLOSE)


@COMPOSITIONS
def test_left_padding_with_prompt_lengths(model: PreTrainedModel, composition: Composition) -> None:
    rows = rows_of(*LENGTHS)
    batch = padded(rows)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        with swaa.apply_policy(model, composition.policy):
            out = model(**batch, position_ids=positions, prompt_lengths=PROMPTS).logits
        for row, prompt, got in zip(rows, PROMPTS, out, strict=True):
            expected = reference_logits(model, row, composition, int(prompt))
            torch.testing.assert_close(got[-len(row) :], expected, **CLOSE)


@COMPOSITIONS
def test_without_prompt_lengths_all_is_prompt(model: PreTrainedModel, composition: Composition) -> None:
    (row,) = rows_of(12)
    with torch.no_grad():
        with swaa.apply_policy(model, composition.policy):
            out = model(row.unsqueeze(0)).logits[0]
        torch.testing.assert_close(out, reference_logits(model, row, composition), **CLOSE)


def packed(documents: list[list[Tensor]]) -> dict[str, Tensor]:
    """Rows that each hold several documents, of one length."""
    return {
        "input_ids": torch.stack([torch.cat(row) for row in documents]),
        "position_ids": torch.stack([torch.cat([torch.arange(len(part)) for part in row]) for row in documents]),
    }


DOCUMENTS = [[5, 8, 3], [10, 6]]
DOCUMENT_PROMPTS = torch.tensor([[3, 8, 0], [4, 6, 0]])


@COMPOSITIONS
@pytest.mark.parametrize("cache", ["none", "the models own", "the callers"])
def test_packed_documents(model: PreTrainedModel, composition: Composition, cache: str) -> None:
    given = {"past_key_values": DynamicCache()} if cache == "the callers" else {"use_cache": cache != "none"}
    documents = [rows_of(*lengths, seed=index) for index, lengths in enumerate(DOCUMENTS)]
    with torch.no_grad():
        with swaa.apply_policy(model, composition.policy):
            out = model(**packed(documents), prompt_lengths=DOCUMENT_PROMPTS, **given).logits
        for row, prompts, got in zip(documents, DOCUMENT_PROMPTS, out, strict=True):
            ends = torch.tensor([len(document) for document in row]).cumsum(0).tolist()
            for document, prompt, end in zip(row, prompts, ends, strict=False):
                expected = reference_logits(model, document, composition, int(prompt))
                torch.testing.assert_close(got[end - len(document) : end], expected, **CLOSE)


@pytest.mark.parametrize("cache", ["none", "the models own", "the callers"])
def test_positions_with_gaps_are_documents_where_transformers_says_so(model: PreTrainedModel, cache: str) -> None:
    (row,) = rows_of(9)
    batch = {"input_ids": row.unsqueeze(0), "position_ids": torch.arange(9).unsqueeze(0) * 2}

    def run() -> list[Tensor]:
        given = {"past_key_values": DynamicCache()} if cache == "the callers" else {"use_cache": cache != "none"}
        out = model(**batch, **given)
        if cache == "none":
            return [out.logits]
        following = {"input_ids": torch.tensor([[3]]), "position_ids": torch.tensor([[18]])}
        return [out.logits, model(**following, past_key_values=out.past_key_values).logits]

    with torch.no_grad():
        expected = run()
        with swaa.apply_policy(model, swaa.SlidingWindow(9).in_phase("prefill")):
            for got, wanted in zip(run(), expected, strict=True):
                torch.testing.assert_close(got, wanted, **CLOSE)


def test_a_wrapper_that_copies_dataclasses_does_not_hide_that_packing_arrived(model: PreTrainedModel) -> None:
    """FSDP rebuilds every dataclass among the arguments of a layer to cast the tensors inside."""

    def copied(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        return args, _apply_to_tensors(lambda tensor: tensor, kwargs)

    with swaa.apply_policy(model, SINKS.policy), torch.no_grad():
        expected = model(**packed([rows_of(5, 7)])).logits
        for layer in model.base_model.layers:
            layer.register_forward_pre_hook(copied, with_kwargs=True)
        torch.testing.assert_close(model(**packed([rows_of(5, 7)])).logits, expected)


@pytest.mark.parametrize("given", [{}, {"past_key_values": DynamicCache()}], ids=["own cache", "given cache"])
def test_nothing_can_be_added_to_packed_documents(model: PreTrainedModel, given: dict[str, Any]) -> None:
    with swaa.apply_policy(model, SINKS.policy), torch.no_grad():
        cache = model(**packed([rows_of(5, 7)]), **given).past_key_values
        with pytest.raises(swaa.UserError, match="past_key_values: .* a cache filled with packed documents"):
            model(torch.tensor([[3]]), past_key_values=cache)


@pytest.mark.parametrize("model_type", ["stablelm", "nemotron"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_packing_is_refused_where_it_would_be_lost(model_type: str, use_cache: bool) -> None:
    model = BY_TYPE[model_type].build()
    with (
        swaa.apply_policy(model, SINKS.policy),
        pytest.raises(swaa.UserError, match="pack several documents into a row, but this model does not pass"),
    ):
        model(**packed([rows_of(5, 7)]), use_cache=use_cache)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3]), r"prompt_lengths: expected ints >= 0 of shape \[3\], got \[3\]"),
        (torch.tensor([3, 4, -1]), r"ints >= 0 of shape \[3\], got \[3, 4, -1\]"),
        (torch.tensor([3.0, 4.0, 5.0]), r"ints >= 0 of shape \[3\], got"),
        (torch.tensor([[3], [4], [5]]), r"ints >= 0 of shape \[3\], got"),
        (torch.tensor(3), r"ints >= 0 of shape \[3\], got 3. Give the number of prompt tokens, padding not counted"),
    ],
)
def test_bad_prompt_lengths(model: PreTrainedModel, lengths: Tensor, message: str) -> None:
    with swaa.apply_policy(model, PHASED.policy), pytest.raises(swaa.UserError, match=message):
        model(**padded(rows_of(*LENGTHS)), prompt_lengths=lengths)


def test_prompt_lengths_for_too_few_documents(model: PreTrainedModel) -> None:
    documents = [rows_of(*lengths) for lengths in DOCUMENTS]
    with (
        swaa.apply_policy(model, PHASED.policy),
        pytest.raises(swaa.UserError, match="a column for each of the 3 documents"),
    ):
        model(**packed(documents), prompt_lengths=DOCUMENT_PROMPTS[:, :2])


# --- gradients ---


def batch_with_labels(*, side: str = "right") -> dict[str, Tensor]:
    """A padded batch whose loss counts the answers."""
    rows = rows_of(*LENGTHS)
    batch = padded(rows, side=side)
    slots = batch["attention_mask"].cumsum(-1) - 1
    answer = batch["attention_mask"].bool() & (slots >= PROMPTS.unsqueeze(-1) - 1)
    return batch | {"labels": batch["input_ids"].masked_fill(~answer, -100), "prompt_lengths": PROMPTS}


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reference_loss(model: torch.nn.Module, composition: Composition, batch: dict[str, Tensor]) -> Tensor:
    """The mean cross entropy over the batch's labels, row by row."""
    total, count = torch.tensor(0.0), 0
    for ids, mask, labels, prompt in zip(*batch.values(), strict=True):
        real = mask.bool()
        logits = reference_logits(model, ids[real], composition, int(prompt))
        wanted = labels[real][1:]
        total = total + torch.nn.functional.cross_entropy(logits[:-1], wanted, ignore_index=-100, reduction="sum")
        count += int((wanted != -100).sum())
    return total / count


@COMPOSITIONS
def test_gradients_equal_the_references(model: PreTrainedModel, composition: Composition) -> None:
    batch = batch_with_labels()
    expected_loss = reference_loss(model, composition, batch)
    expected = gradients(model, expected_loss)
    with swaa.apply_policy(model, composition.policy):
        loss = model(**batch, use_cache=False).loss
        got = gradients(model, loss)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "mistral"])
def test_gradients_through_native_features(model_type: str) -> None:
    """Softcap, sink logits, native windows."""
    architecture = BY_TYPE[model_type]
    model = architecture.build()
    (row,) = rows_of(12)
    with reference(model, PHASED.meaning, prompt=8, native=architecture.native):
        expected = gradients(model, model(row.unsqueeze(0), labels=row.unsqueeze(0), use_cache=False).loss)
    with swaa.apply_policy(model, PHASED.policy):
        out = model(row.unsqueeze(0), labels=row.unsqueeze(0), use_cache=False, prompt_lengths=torch.tensor([8]))
        got = gradients(model, out.loss)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("composition", [SINKS, PHASED, HEADS], ids=str)
def test_gradient_checkpointing(model: PreTrainedModel, composition: Composition, reentrant: bool) -> None:
    model.train()
    batch = batch_with_labels()
    with swaa.apply_policy(model, composition.policy):
        plain_loss = model(**batch, use_cache=False).loss
        plain = gradients(model, plain_loss)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        loss = model(**batch, use_cache=False).loss
        saved = gradients(model, loss)
    assert torch.equal(loss, plain_loss)
    assert saved.keys() == plain.keys()
    for name, gradient in saved.items():
        torch.testing.assert_close(gradient, plain[name])


def test_checkpointed_gradients_when_the_policy_is_gone_before_backward(model: PreTrainedModel) -> None:
    """Recomputing happens in backward; the block must hold both."""
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with swaa.apply_policy(model, SINKS.policy):
        loss = model(**batch_with_labels(), use_cache=False).loss
    with pytest.raises(TypeError, match="MaskPlan"):
        loss.backward()


@pytest.fixture
def forgotten() -> Iterator[None]:
    """swaa has not said anything yet."""
    said = set(program._said)
    program._said.clear()
    yield
    program._said.clear()
    program._said.update(said)


@pytest.mark.usefixtures("forgotten")
def test_training_on_the_cpu_is_nothing_to_be_said(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="swaa"), swaa.apply_policy(model, PHASED.policy):
        model(**batch_with_labels(), use_cache=False).loss.backward()
    assert not caplog.records


def test_flex_is_refused_for_training_on_the_cpu(model: PreTrainedModel) -> None:
    with (
        swaa.apply_policy(model, SINKS.policy, kernel="flex"),
        pytest.raises(
            swaa.UserError, match="kernel: 'flex' was asked for, but FlexAttention has no backward pass on CPU"
        ),
    ):
        model(**batch_with_labels(), use_cache=False)


def test_attention_dropout_is_drawn_and_reproducible(model: PreTrainedModel) -> None:
    dropping = BY_TYPE["llama"].build(attention_dropout=0.5).train()
    batch = batch_with_labels()

    def loss(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropping(**batch, use_cache=False).loss

    with swaa.apply_policy(dropping, SINKS.policy):
        assert torch.equal(loss(0), loss(0))
        assert not torch.equal(loss(0), loss(1))


# --- PEFT ---


def lora(model: PreTrainedModel) -> PeftModel:
    """The model with random LoRA adapters."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config).eval()


@pytest.mark.parametrize("applied_to", ["the wrapper", "the model inside"])
@pytest.mark.parametrize("composition", [SINKS, PHASED], ids=str)
def test_lora(model: PreTrainedModel, composition: Composition, applied_to: str) -> None:
    wrapped = lora(model)
    inside: Any = wrapped.get_base_model()
    rows = rows_of(12, 7)
    batch = batch_with_labels()
    expected = gradients(wrapped, reference_loss(inside, composition, batch))
    expected_tokens = []
    for row in rows:
        whole = row
        for _ in range(6):
            with torch.no_grad():
                logits = reference_logits(inside, whole, composition, len(row))
            whole = torch.cat([whole, logits[-1:].argmax(-1)])
        expected_tokens.append(whole[-6:].tolist())
    with swaa.apply_policy(wrapped if applied_to == "the wrapper" else inside, composition.policy):
        out = wrapped.generate(**padded(rows), max_new_tokens=6, do_sample=False)
        got = gradients(wrapped, wrapped(**batch, use_cache=False).loss)
    assert out[:, -6:].tolist() == expected_tokens
    assert got.keys() == expected.keys()
    assert all("lora" in name for name in got)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-4, rtol=1e-3)


def test_lora_put_on_after_the_policy(model: PreTrainedModel) -> None:
    rows = rows_of(12)
    swaa.apply_policy(model, PHASED.policy)
    wrapped = lora(model)
    out = wrapped.generate(**padded(rows), max_new_tokens=6, do_sample=False)
    fresh = lora(BY_TYPE["llama"].build())
    with swaa.apply_policy(fresh, PHASED.policy):
        assert torch.equal(fresh.generate(**padded(rows), max_new_tokens=6, do_sample=False), out)
