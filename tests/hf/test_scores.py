"""Score modifications on models: one pass, generation with a cache, evicting or not, padding, saving, learning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel

import score_oracle
import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.zoo import BY_TYPE, WINDOW
from oracle import Model
from score_oracle import Part
from swaa import SinkTokens, SlidingWindow
from swaa.hf import sinks, spec
from swaa.policies.scores import ALiBi, Scores, SinkLogits, SoftCap, parse_scores

NAME = "loop_reference_of_scores"
MODEL = Model(layers=3, heads=4)
POLICY = SlidingWindow(5) | SinkTokens(2)
SCORES = ALiBi() + SoftCap(3.0).on_layers("1:") + SinkLogits(0.5).on_heads([0, 2])
PARTS = (Part("ALiBi"), Part("SoftCap", (3.0,), layers="1:"), Part("SinkLogits", (0.5,), heads=(0, 2)))
LENGTHS = (12, 7)

_visible: Callable[[int, int, int], bool] = lambda layer, q, k: True  # noqa: E731
_parts: tuple[Part, ...] = ()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Row by row: the model's own cap, the parts, the sinks."""
    layer, (batch, heads, length, size) = module.layer_idx, query.shape
    out = torch.empty(batch, length, heads, size)
    for b in range(batch):
        for h in range(heads):
            group = h // (heads // key.shape[1])
            for q in range(length):
                seen = [k for k in range(q + 1) if _visible(layer, q, k)]  # type: ignore[arg-type]
                scores = key[b, group, seen] @ query[b, h, q] * (size**-0.5 if scaling is None else scaling)
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                scores = score_oracle.change(_parts, scores, q, torch.tensor(seen), layer, h, MODEL)  # type: ignore[arg-type]
                extra = score_oracle.sinks(_parts, layer, h, MODEL)  # type: ignore[arg-type]
                extra += [] if s_aux is None else [float(s_aux[h])]
                weights = torch.softmax(torch.cat([scores, scores.new_tensor(extra)]), 0)[: len(seen)]
                out[b, q, h] = weights @ value[b, group, seen]
    return out, None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@contextmanager
def reference(
    model: PreTrainedModel, visible: Callable[[int, int, int], bool], parts: tuple[Part, ...] = PARTS
) -> Iterator[None]:
    """Inside the block the model runs on this file's attention; for rows without padding, and no cache."""
    global _visible, _parts
    before, _visible, _parts = (_visible, _parts), visible, parts
    implementation = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        _visible, _parts = before
        model.set_attn_implementation(implementation)


def window_and_sinks(layer: int, q: int, k: int) -> bool:
    return q - k < 5 or k < 2


def logits(model: torch.nn.Module, row: Tensor, **kwargs: Any) -> Tensor:
    """[token, word]"""
    with torch.no_grad():
        return model(row.unsqueeze(0), use_cache=False, **kwargs).logits[0]


@pytest.fixture
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build()  # two query heads for each of two key-value heads


@pytest.mark.parametrize("kernel", ["auto", "blockwise", "dense"])
def test_one_pass_is_that_of_the_loops(model: PreTrainedModel, kernel: str) -> None:
    """Of a batch padded on the left, too, whose positions are logical ones."""
    rows = rows_of(*LENGTHS)
    with reference(model, window_and_sinks):
        expected = [logits(model, row) for row in rows]
    batch = padded(rows)
    with swaa.apply_policy(model, POLICY, SCORES, kernel=kernel):
        found = [logits(model, row) for row in rows]
        with torch.no_grad():
            together = model(**batch).logits[batch["attention_mask"].bool()]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)
    torch.testing.assert_close(together, torch.cat(expected), **CLOSE)
    with swaa.apply_policy(model, POLICY):
        assert (logits(model, rows[0]) - expected[0]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_what_the_model_has_of_its_own_comes_first(name: str) -> None:
    """Gemma 2's soft cap, gpt-oss's sinks, and the windows of both."""
    model = BY_TYPE[name].build()
    row = rows_of(12)[0]

    def visible(layer: int, q: int, k: int) -> bool:
        return window_and_sinks(layer, q, k) and (layer == 1 or q - k < WINDOW)

    with reference(model, visible):
        expected = logits(model, row)
    with swaa.apply_policy(model, POLICY, SCORES):
        torch.testing.assert_close(logits(model, row), expected, **CLOSE)


POLICIES = {
    "all heads alike": POLICY,
    "heads that keep different keys": (SlidingWindow(3) | SinkTokens(1)).on_heads([0, 1], otherwise=SlidingWindow(6)),
    "layers and phases": POLICY.in_phase("prefill").on_layers("::2"),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("evict", [True, False])
def test_generation_with_a_cache_is_that_without(model: PreTrainedModel, name: str, evict: bool) -> None:
    """Left padded, token by token; keys of an evicting cache lie in other slots than they came in."""
    batch = padded(rows_of(*LENGTHS))
    width, steps = batch["input_ids"].shape[1], 10
    prompts = batch["attention_mask"].sum(-1)
    with swaa.apply_policy(model, POLICIES[name], SCORES, evict=evict), torch.no_grad():
        made: Any = model.generate(  # type: ignore[operator]
            **batch, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        ids = made.sequences[:, :-1]
        mask = torch.cat([batch["attention_mask"], torch.ones(len(ids), steps - 1, dtype=torch.long)], 1)
        whole = model(input_ids=ids, attention_mask=mask, prompt_lengths=prompts, use_cache=False).logits
    torch.testing.assert_close(torch.stack(made.logits, 1), whole[:, width - 1 :], **CLOSE)


def test_on_and_off_again(model: PreTrainedModel) -> None:
    row = rows_of(9)[0]
    before, tensors = logits(model, row), sorted(model.state_dict())
    with swaa.apply_policy(model, POLICY, "ALiBi() + SinkLogits(0.5, learned=True)") as handle:
        assert handle.scores == parse_scores("ALiBi() + SinkLogits(0.5, learned=True)")
        with_scores = logits(model, row)
        with handle.using("SlidingWindow(3)"):
            narrow = logits(model, row)
        with handle.using(POLICY, None):
            plain = logits(model, row)
        with handle.using("SlidingWindow(3)", ALiBi() + SinkLogits(0.5)):
            assert torch.equal(logits(model, row), narrow), "the scores outside the block are kept by default"
        assert torch.equal(logits(model, row), with_scores)
    assert torch.equal(logits(model, row), before)
    assert sorted(model.state_dict()) == tensors
    with swaa.apply_policy(model, POLICY) as handle:
        assert torch.equal(logits(model, row), plain)
        with pytest.raises(swaa.UserError, match=r"layer 0 has no learned logits. Apply them with swaa.apply_policy"):
            handle.using(POLICY, SinkLogits(learned=True)).__enter__()


def test_a_spec_without_scores_is_what_it_was(model: PreTrainedModel) -> None:
    with swaa.apply_policy(model, POLICY):
        assert sorted(model.config.swaa) == ["evict", "kernel", "policy"]


def saved(model: PreTrainedModel, folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from hf.zoo import WORDS

    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2").save_pretrained(folder)


LEARNED = ALiBi() + SinkLogits(0.25, learned=True).on_layers("1:").on_heads([0, 3])


def test_learned_sinks_are_trained_saved_and_loaded(model: PreTrainedModel, tmp_path: Path) -> None:
    """By an ordinary optimizer: those of the chosen layers and heads, and no others."""
    row = rows_of(12)[0].unsqueeze(0)
    swaa.apply_policy(model, POLICY, LEARNED)
    parameters = {name: one for name, one in model.named_parameters() if sinks.PARAMETER in name}
    assert sorted(parameters) == [f"model.layers.{layer}.self_attn.swaa_sink_logits" for layer in (1, 2)]
    begins = logits(model, row[0])
    optimizer = torch.optim.SGD(list(parameters.values()), lr=3.0)
    model.train()
    losses = []
    for _ in range(3):
        loss = model(row, labels=row).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        for one in parameters.values():
            assert one.grad is not None
            assert (one.grad != 0).tolist() == [True, False, False, True]
        optimizer.step()
    assert losses[2] < losses[0]
    learned = logits(model.eval(), row[0])
    assert (learned - begins).abs().max() > 1e-3
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied, row[0]), learned)
    saved(model, tmp_path)
    loaded, _ = swaa.load(tmp_path, device="cpu")
    assert spec.saved_scores(loaded.config) == LEARNED
    torch.testing.assert_close(logits(loaded, row[0]), learned)
    again, _ = swaa.load(tmp_path, device="cpu", scores=SinkLogits(0.0))
    assert not any(sinks.PARAMETER in name for name, _ in again.named_parameters())


def test_a_checkpoint_without_its_sinks_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    with swaa.apply_policy(model, POLICY, LEARNED):
        described = model.config.swaa
    swaa.apply_policy(model, POLICY)
    model.config.swaa["scores"] = described["scores"]
    saved(model, tmp_path)
    with pytest.raises(swaa.UserError, match="lacks 'model.layers.1.self_attn.swaa_sink_logits'. Save the model"):
        swaa.load(tmp_path, device="cpu")


def test_another_loader_names_what_it_does_not_know(
    model: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swaa.apply_policy(model, POLICY, LEARNED)
    saved(model, tmp_path)
    with caplog.at_level("WARNING", "transformers"):
        swaa.load(tmp_path, device="cpu")
    assert "swaa_sink_logits" not in caplog.text
    _, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert sum("swaa_sink_logits" in name for name in told["unexpected_keys"]) == 2


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (ALiBi().on_layers(7), "layer 7 is out of range: this model has 3 layers"),
        (ALiBi().on_heads("4:"), "this model has 4 heads"),
        (SinkLogits((1.0, 2.0)), "SinkLogits.logits: expected 4 of them, one for each query head of this model, got 2"),
        ("ALiBy()", "unknown score modification 'ALiBy'. Did you mean 'ALiBi'"),
        (SinkLogits(learned=True) + SinkLogits(1.0, learned=True), "head 0 has 2 learned sink logits"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_trace(
    model: PreTrainedModel, scores: Scores | str, message: str
) -> None:
    with pytest.raises(swaa.UserError, match=message):
        swaa.apply_policy(model, POLICY, scores)
    assert spec.read_spec(model.config) is None


def test_heads_that_keep_different_keys_keep_their_learned_sinks() -> None:
    model = BY_TYPE["llama"].build()
    tokens = torch.randint(3, model.config.vocab_size, (1, 14), generator=torch.Generator().manual_seed(8))
    policy = swaa.SlidingWindow(3).on_heads([0, 1], otherwise=swaa.SlidingWindow(6))
    with swaa.apply_policy(model, policy, swaa.SinkLogits((2.0, -1.0, 0.0, 3.0), learned=True)), torch.no_grad():
        cache = swaa.PolicyCache(model)
        steps = [model(part, past_key_values=cache).logits for part in tokens.split([9, 1, 1, 3], 1)]
        assert len(cache.layers[0].parts) == 2
        torch.testing.assert_close(torch.cat(steps, 1), model(tokens, use_cache=False).logits, rtol=1e-5, atol=1e-5)
