"""One result on every kernel: compiled FlexAttention, the dense mask, and what stands in where Flex cannot run."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterator

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.reference import reference
from hf.zoo import BY_TYPE, WINDOW
from swaa.compiler import plan, program

POLICY = (swaa.SlidingWindow(20) | swaa.SinkTokens(3)).in_phase("prefill").on_layers(swaa.every(2, start=0))
"""Long enough for several blocks."""
LENGTHS = (300, 171)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """swaa has not said anything yet, nor looked for a compiler."""
    said = set(program._said)
    program._said.clear()
    plan.has_cpp_compiler.cache_clear()
    yield
    program._said.clear()
    program._said.update(said)
    plan.has_cpp_compiler.cache_clear()


def build(model_type: str = "llama") -> PreTrainedModel:
    return BY_TYPE[model_type].build(max_position_embeddings=512)


def run(model: PreTrainedModel, kernel: str, batch: dict[str, Tensor]) -> Tensor:
    """[token, word], of the real tokens."""
    with swaa.apply_policy(model, POLICY, kernel=kernel), torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_flex_equals_dense(model_type: str) -> None:
    """Alone, padded on either side and with prompt lengths; for Gemma 2, padded, with softcap and native windows."""
    model = build(model_type)
    rows = rows_of(*LENGTHS)
    batches = [
        padded(rows),
        padded(rows, side="right") | {"prompt_lengths": torch.tensor([130, 171])},
    ]
    if model_type == "llama":  # another number of rows is another graph, of seconds
        batches.append(padded(rows[:1]))
    for batch in batches:
        torch.testing.assert_close(run(model, "flex", batch), run(model, "dense", batch), **CLOSE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_generation_on_flex_equals_dense() -> None:
    """Flex in the padded prefill, one query at a time afterwards."""
    model = build()
    tokens = {}
    for kernel in ("flex", "dense"):
        with swaa.apply_policy(model, POLICY, kernel=kernel):
            tokens[kernel] = model.generate(**padded(rows_of(*LENGTHS)), max_new_tokens=6, do_sample=False)
    assert torch.equal(tokens["flex"], tokens["dense"])


@pytest.mark.parametrize("kernel", ["auto", "blockwise"])
def test_blockwise_on_what_is_long_enough(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    real = program.blockwise_attention
    monkeypatch.setattr(program, "blockwise_attention", lambda *a, **k: used.append(1) or real(*a, **k))
    monkeypatch.setattr(plan, "DENSE_ON_CPU_UP_TO", 100 * 100)
    model, batch = build(), padded(rows_of(*LENGTHS))
    torch.testing.assert_close(run(model, kernel, batch), run(model, "dense", batch), **CLOSE)
    layers = model.config.num_hidden_layers  # in auto, the full ones go to the causal kernel, sample by sample
    assert len(used) == (layers if kernel == "blockwise" else (layers + 1) // 2)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert shutil.which("g++") is None


def test_without_a_compiler_nothing_changes_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plan, "DENSE_ON_CPU_UP_TO", 100 * 100)
    no_compiler(monkeypatch)
    model, batch = build(), padded(rows_of(*LENGTHS))
    with caplog.at_level(logging.INFO, logger="swaa"):
        out = run(model, "auto", batch)
    assert not caplog.records
    torch.testing.assert_close(out, run(model, "dense", batch), **CLOSE)


def test_without_a_compiler_flex_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(monkeypatch)
    with pytest.raises(swaa.UserError, match="'flex' was asked for, but there is no C\\+\\+ compiler"):
        run(build(), "flex", padded(rows_of(*LENGTHS)))


def test_sink_logits_run_on_each_kernel_and_flex_is_refused_where_they_are_trained() -> None:
    model, batch = build("gpt_oss"), padded(rows_of(30, 11))
    torch.testing.assert_close(run(model, "auto", batch), run(model, "dense", batch))
    refused = pytest.raises(swaa.UserError, match="'flex' was asked for, but sink logits that are trained")
    with swaa.apply_policy(model, swaa.SlidingWindow(5), kernel="flex"), refused:
        model(**batch)


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("gemma2", {"attn_logit_softcapping": None}),
        ("mistral", {"sliding_window": None}),
        ("gemma3_text", {"sliding_window": WINDOW + 1}),
        ("llama4_text", {"attention_chunk_size": WINDOW + 1}),
    ],
)
def test_a_native_feature_makes_a_difference(model_type: str, change: dict[str, object]) -> None:
    """So that honouring it, which test_architectures shows for all, means something."""
    batch = padded(rows_of(30, 11))
    honoured, otherwise = BY_TYPE[model_type].build(), BY_TYPE[model_type].build(**change)
    assert (run(honoured, "auto", batch) - run(otherwise, "auto", batch)).abs().max() > 100 * CLOSE["atol"]


def test_heads_that_a_native_window_makes_alike_are_one_group() -> None:
    """Both windows are wider than the model's own, so all heads see what they see natively."""
    model, batch = BY_TYPE["mistral"].build(), padded(rows_of(30, 11))
    wider = swaa.stack(
        swaa.rule(swaa.SlidingWindow(9), heads=[0]),
        swaa.rule(swaa.SlidingWindow(12), heads=[1]),
        swaa.rule(swaa.FullAttention()),
    )
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        native = model(**batch).logits[real]
        with swaa.apply_policy(model, wider):
            torch.testing.assert_close(model(**batch).logits[real], native, **CLOSE)
        with swaa.apply_policy(model, wider & swaa.SlidingWindow(3).on_heads([2])):
            assert (model(**batch).logits[real] - native).abs().max() > 100 * CLOSE["atol"]


def test_sink_logits_make_a_difference() -> None:
    batch = padded(rows_of(30, 11))
    model = build("gpt_oss")
    honoured = run(model, "auto", batch)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(-1e4)
    assert (run(model, "auto", batch) - honoured).abs().max() > 100 * CLOSE["atol"]


@pytest.mark.parametrize(
    ("model_type", "cache"),
    [
        *itertools.product(["mistral", "gemma3_text", "gpt_oss", "llama4_text", "cohere2"], ["dynamic"]),
        *itertools.product(["mistral", "gemma3_text", "gpt_oss", "cohere2"], ["static"]),
        pytest.param(
            "llama4_text",
            "static",
            marks=pytest.mark.skipif(
                Version(transformers.__version__) < Version("5.23"),
                reason="transformers itself could not generate from native chunks with a static cache",
            ),
        ),
    ],
)
def test_native_windows_with_the_models_own_hybrid_cache(model_type: str, cache: str) -> None:
    """Those caches forget tokens beyond the native window, which the policy cannot see either."""
    architecture = BY_TYPE[model_type]
    model = architecture.build()
    policy = swaa.SlidingWindow(3) | swaa.SinkTokens(2)
    rows = rows_of(19, 12)
    with swaa.apply_policy(model, policy):
        out = model.generate(**padded(rows), max_new_tokens=8, do_sample=False, cache_implementation=cache)
    for row, got in zip(rows, out[:, -8:], strict=True):
        whole = torch.cat([row, got])
        with (
            reference(model, lambda at: at.window(3) or at.sinks(2), native=architecture.native),
            torch.no_grad(),
        ):
            logits = model(whole.unsqueeze(0), use_cache=False).logits[0]
        assert logits[len(row) - 1 : -1].argmax(-1).tolist() == got.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = build().to(dtype)
    rows = rows_of(30, 11)
    got = run(model, "auto", padded(rows))
    assert got.dtype == dtype
    expected = run(build(), "auto", padded(rows))
    assert (got.float() - expected).abs().mean() < (0.05 if dtype != torch.float64 else 1e-5)
    assert torch.isfinite(got).all()
