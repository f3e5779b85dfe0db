"""Score modifications on every kernel against loops over pairs: values, gradients, positions, heads, sinks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters

import oracle
import score_oracle
from oracle import Atom, Contiguous, Model, Padded, Place, Scope, Union
from score_oracle import Part
from strategies import Case, bound_layer, cases, layout_of, selectors
from swaa import FullAttention, PrefixLM, SlidingWindow, UserError
from swaa.compiler import blockrows, blockwise, plan
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import Kernel, has_cpp_compiler
from swaa.compiler.program import AttentionProgram
from swaa.compiler.scores import check_scores
from swaa.policies import bind
from swaa.policies.scores import ALiBi, CachePositions, LayerScores, ScoreMod, Scores, SinkLogits, SoftCap, bind_scores

FIFTIETH = settings(max_examples=max(20, settings.default.max_examples // 50))
HUNDREDTH = settings(max_examples=max(20, settings.default.max_examples // 100))


@dataclass(frozen=True, repr=False)
class Uneven(ScoreMod):
    """Depends on the positions themselves, and is not a number where a key comes after its query."""

    gain: float
    period: int

    def modify(self, score: Any, q: Any, k: Any, head: Any) -> Any:
        at_start = (k % self.period == 0).to(score.dtype)
        return score * (1 + (self.gain - 1) * at_start) + 0.1 * (q % 3) + (q - k).to(score.dtype).sqrt()

    @classmethod
    def examples(cls) -> Sequence[Uneven]:
        return (cls(2.0, 3),)


CLASSES: dict[str, Any] = {kind.__name__: kind for kind in (ALiBi, SoftCap, SinkLogits, Uneven)}


def scores_of(parts: Sequence[Part]) -> Scores:
    """swaa's side of the oracle's parts."""
    summed: Scores | None = None
    for part in parts:
        one: Scores = CLASSES[part.name](*part.args)
        one = one if part.layers is None else one.on_layers(part.layers)
        one = one if part.heads is None else one.on_heads(part.heads)
        summed = one if summed is None else summed + one
    assert summed is not None
    return summed


@st.composite
def sums(draw: st.DrawFn, model: Model) -> tuple[Part, ...]:
    """One to four modifications, scoped or not."""
    number = st.sampled_from((-2.0, 0.0, 0.5, 3.0))
    table = st.lists(number, min_size=model.heads, max_size=model.heads).map(tuple)
    kinds: st.SearchStrategy[tuple[str, tuple[Any, ...]]] = st.one_of(
        st.just(("ALiBi", ())),
        table.map(lambda own: ("ALiBi", (own,))),
        st.sampled_from((0.5, 2.0, 30.0)).map(lambda cap: ("SoftCap", (cap,))),
        (number | table).map(lambda logits: ("SinkLogits", (logits,))),
        st.tuples(st.sampled_from((0.5, 2.0)), st.integers(1, 4)).map(lambda args: ("Uneven", args)),
    )
    parts = []
    for name, args in draw(st.lists(kinds, min_size=1, max_size=4)):
        layers = draw(st.none() | selectors(model.layers))
        parts.append(Part(name, args, layers, draw(st.none() | selectors(model.heads))))
    return tuple(parts)


def layer_scores(parts: Sequence[Part], model: Model, layer: int) -> LayerScores:
    return bind_scores(scores_of(parts), model.layers, model.heads)[layer]


@FIFTIETH
@given(st.data(), cases(longest=14))
def test_equal_to_the_loops(data: st.DataObject, case: Case) -> None:
    """Any policy, layout and head sharing, beside the model's own soft cap and sinks; the kernels of plain tensors."""
    parts = data.draw(sums(case.model))
    softcap = data.draw(st.sampled_from((None, 2.0)))
    own = torch.linspace(-1, 1, case.model.heads) if data.draw(st.booleans()) else None
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    expected = score_oracle.attention(
        *case.tensors(), truth, case.scene, parts, case.model, case.layer, softcap=softcap, own_sinks_H=own
    )
    scores = layer_scores(parts, case.model, case.layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "DENSE_ON_CPU_UP_TO", 0)
        patch.setattr(blockwise, "_SCORES", (1 << 20, 50)[case.seed % 2])
        for kernel in ("auto", "blockwise", "dense"):
            run = AttentionProgram(layout, kernel)
            out = run.attend(layer, *case.tensors(), softcap=softcap, sink_logits_H=own, scores=scores)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["dense", "blockwise"])
def test_as_far_ahead_counts_as_far_back(kernel: str) -> None:
    """Where a policy looks ahead, a score goes by the distance, whichever of the two comes first."""
    query, key, value = torch.randn(3, 1, 2, 9, 4, generator=torch.Generator().manual_seed(4))
    layer = bind(PrefixLM(), 1, 2).layers[0]
    scores = bind_scores(ALiBi() + Uneven(2.0, 3), 1, 2)[0]
    expected = torch.empty(1, 2, 9, 4)
    for h in range(2):
        for q in range(9):
            seen = 6 if q < 6 else q + 1  # the prompt has 6 tokens
            row = query[0, h, q] @ key[0, h, :seen].T / 2
            for k in range(seen):
                late, early = max(q, k), min(q, k)
                row[k] -= 2 ** (-4 * (h + 1)) * (late - early)
                row[k] = row[k] * (2 if early % 3 == 0 else 1) + 0.1 * (late % 3) + (late - early) ** 0.5
            expected[0, h, q] = torch.softmax(row, 0) @ value[0, h, :seen]
    program = AttentionProgram(TokenLayout.contiguous(9, prompt_lengths=6), kernel)
    torch.testing.assert_close(program.attend(layer, query, key, value, scores=scores), expected)


@dataclass(frozen=True, repr=False)
class Roots(ScoreMod):
    """Not a number where there is no position."""

    def modify(self, score: Any, q: Any, k: Any, head: Any) -> Any:
        return score + (q + k).to(score.dtype).sqrt()

    @classmethod
    def examples(cls) -> Sequence[Roots]:
        return (cls(),)


@pytest.mark.parametrize("kernel", ["dense", "blockwise"])
def test_padding_stands_somewhere(kernel: str) -> None:
    scores, layer = bind_scores(Roots(), 1, 1)[0], bind(FullAttention(), 1, 1).layers[0]
    layout = TokenLayout.padded(torch.tensor([[False, False, True, True, True]]))
    out = AttentionProgram(layout, kernel).attend(layer, *torch.ones(3, 1, 1, 5, 2), scores=scores)
    assert out[0, 0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1]]


def test_each_precision_and_the_usual_scale() -> None:
    """One program may meet both; and heads that positions make twice as wide keep their scale."""
    scores, layer = bind_scores(ALiBi((0.1,)) + CachePositions(1, 3), 1, 1)[0], bind(FullAttention(), 1, 1).layers[0]
    given = torch.randn(3, 1, 1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    program = AttentionProgram(TokenLayout.contiguous(6), "dense")
    program.attend(layer, *given.float(), scores=scores, turn_back=lambda query, _: query)
    out = program.attend(layer, *given, scores=scores, turn_back=lambda query, _: query)
    q, k = torch.arange(6).unsqueeze(-1), torch.arange(6)
    bias = (0.1 * (k - q).double()).masked_fill(k > q, float("-inf"))
    wanted = torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=bias)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


def test_blockwise_tells_heads_apart_where_masks_do() -> None:
    scores = bind_scores(ALiBi((0.5, 2.0)), 1, 2)[0]
    layer = bind(SlidingWindow(3).on_heads([0]), 1, 2).layers[0]
    tensors = torch.randn(3, 1, 2, 8, 4, generator=torch.Generator().manual_seed(9))
    q, k = torch.arange(8).unsqueeze(-1), torch.arange(8)
    masks = torch.stack([(k <= q) & (q - k < 3), k <= q])
    bias = (torch.tensor([0.5, 2.0]).view(2, 1, 1) * (k - q)).masked_fill(~masks, float("-inf"))
    out = AttentionProgram(TokenLayout.contiguous(8), "blockwise").attend(layer, *tensors, scores=scores)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=bias))


def test_the_first_key_behind_the_sinks_keeps_its_distance() -> None:
    """Seen by a query that looks at sinks from elsewhere, as under full attention."""
    scores, layer = bind_scores(CachePositions(2, 1), 1, 1)[0], bind(FullAttention(), 1, 1).layers[0]
    query, key = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 4, 1)
    program = AttentionProgram(TokenLayout.contiguous(1, 4, offset=3))
    value = torch.eye(4).view(1, 1, 4, 4)
    out = program.attend(layer, query, key, value, scores=scores, turn_back=lambda query, _: query + 1)
    torch.testing.assert_close(out[0, 0, 0], torch.softmax(torch.tensor([2.0, 2.0, 1.0, 1.0]), 0))


@HUNDREDTH
@given(st.data(), cases(longest=8))
def test_gradients(data: st.DataObject, case: Case) -> None:
    """Those of queries, keys, values and sinks, blockwise and dense; none is NaN."""
    parts = data.draw(sums(case.model))
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    scores = layer_scores(parts, case.model, case.layer)
    gradients = []
    for kernel in ("loops", "blockwise", "dense"):
        tensors = [tensor.double().requires_grad_() for tensor in case.tensors()]
        sinks_H = torch.linspace(-1, 1, case.model.heads).double().requires_grad_()
        if kernel == "loops":
            loop = (truth, case.scene, parts, case.model, case.layer)
            out = score_oracle.attention(*tensors, *loop, own_sinks_H=sinks_H)
        else:
            out = AttentionProgram(layout, kernel).attend(layer, *tensors, sink_logits_H=sinks_H, scores=scores)
        if out.requires_grad:
            (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        gradients.append([torch.zeros_like(t) if t.grad is None else t.grad for t in (*tensors, sinks_H)])
    for mine in gradients[1:]:
        for got, wanted in zip(mine, gradients[0], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)  # sinks are float32 at their narrowest


def tensors(batch: int, length: int, keys: int | None = None) -> list[Tensor]:
    random = torch.Generator().manual_seed(length)
    return [
        torch.randn(batch, h, n, 16, generator=random)
        for h, n in ((4, length), (2, keys or length), (2, keys or length))
    ]


@pytest.mark.parametrize("gathered", [1, 1 << 15])
def test_longer_rows_alone_and_together(gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose keys lie in one run, far from the first; pairs after the query, where the modification is NaN."""
    monkeypatch.setattr(blockrows, "_GATHERED", gathered)
    model, scene, recipe = Model(1, 4), Contiguous(200, 200), Atom("SlidingWindow", (30,))
    parts = (Part("Uneven", (0.5, 3)), Part("ALiBi"))
    layer, layout, drawn = bound_layer(recipe, model, 0), layout_of(scene), tensors(1, 200)
    expected = score_oracle.attention(*drawn, oracle.mask(recipe, scene, model, 0), scene, parts, model, 0)
    for kernel in ("blockwise", "dense"):
        out = AttentionProgram(layout, kernel).attend(layer, *drawn, scores=layer_scores(parts, model, 0))
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_learned_sinks_take_the_place_of_what_they_begin_with() -> None:
    """Gradients reach the heads that learn, and no others."""
    layer, layout = bind(SlidingWindow(6), 1, 4).layers[0], TokenLayout.contiguous(20)
    learns = bind_scores(SinkLogits(1.0, learned=True).on_heads([1, 3]) + SinkLogits(-1.0), 1, 4)[0]
    begins = bind_scores(SinkLogits(1.0).on_heads([1, 3]) + SinkLogits(-1.0), 1, 4)[0]
    for kernel in ("blockwise", "dense"):
        run = AttentionProgram(layout, kernel)
        expected = run.attend(layer, *tensors(1, 20), scores=begins)
        torch.testing.assert_close(run.attend(layer, *tensors(1, 20), scores=learns), expected)
        values_H = torch.tensor([9.0, 1.0, 9.0, 1.0], requires_grad=True)
        out = run.attend(layer, *tensors(1, 20), scores=learns, learned_sinks_H=values_H)
        torch.testing.assert_close(out.detach(), expected)
        out.square().sum().backward()
        assert values_H.grad is not None
        assert (values_H.grad != 0).tolist() == [False, True, False, True]
        assert not values_H.grad.isnan().any()


def test_one_query_over_a_cache_in_any_order() -> None:
    """Positions come from the layout, and not from slots: decode over an evicted cache, with a free slot."""
    positions = torch.tensor([[0, 17, 18, -1, 12, 15]])
    layout = TokenLayout(torch.tensor([[18]]), positions, torch.ones(1, 1, dtype=torch.bool))
    layer = bind(FullAttention(), 1, 4).layers[0]
    scores = bind_scores(ALiBi() + SinkLogits(0.3), 1, 4)[0]
    query, key, value = tensors(1, 1, 6)
    out = AttentionProgram(layout).attend(layer, query, key, value, scores=scores)
    order = [0, 4, 5, 1, 2]
    for head in range(4):
        logits = key[0, head // 2, order] @ query[0, head, 0] / 4
        logits = logits - score_oracle.slopes(4)[head] * torch.tensor([18.0, 6.0, 3.0, 1.0, 0.0])
        weights = torch.softmax(torch.cat([logits, torch.tensor([0.3])]), 0)[:5]
        torch.testing.assert_close(out[0, head, 0], weights @ value[0, head // 2, order])


def test_half_precision_is_computed_in_single() -> None:
    layer, layout = bind(SlidingWindow(40), 1, 4).layers[0], TokenLayout.contiguous(300)
    scores = bind_scores(ALiBi() + SoftCap(5.0) + SinkLogits(0.0), 1, 4)[0]
    expected = AttentionProgram(layout, "dense").attend(layer, *tensors(2, 300), scores=scores)
    for kernel in ("dense", "blockwise"):
        run = AttentionProgram(layout, kernel)
        out = run.attend(layer, *(tensor.bfloat16() for tensor in tensors(2, 300)), scores=scores)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)


def test_scores_that_change_nothing_leave_the_causal_kernel() -> None:
    """A scope on other layers costs nothing here."""
    layer, layout = bind(FullAttention(), 2, 4).layers[0], TokenLayout.contiguous(300)
    here, there = bind_scores(ALiBi().on_layers(1), 2, 4)
    assert here.is_nothing
    run = AttentionProgram(layout)
    assert torch.equal(run.attend(layer, *tensors(1, 300), scores=here), run.attend(layer, *tensors(1, 300)))
    assert not run._rows
    run.attend(layer, *tensors(1, 300), scores=there)
    assert run._rows, "no fused kernel changes scores"
    assert plan.choose_kernel(layer, plan.Job(300, 300, has_scores=True)).kernel is Kernel.BLOCKWISE


def test_a_part_of_the_heads_keeps_their_numbers() -> None:
    """As an evicting cache asks, which splits a layer by heads."""
    model = bind_scores(ALiBi() + SoftCap(2.0).on_heads([1, 2]) + SinkLogits((1.0, 2.0, 3.0, 4.0)), 1, 4)[0]
    layout, full = TokenLayout.contiguous(9), bind(FullAttention(), 1, 4).layers[0]
    query, key, value = tensors(1, 9)
    whole = AttentionProgram(layout).attend(full, query, key, value, scores=model)
    for kv_head, heads in ((0, (0, 1)), (1, (2, 3))):
        some = bind(FullAttention(), 1, 2).layers[0]
        at = slice(kv_head, kv_head + 1)
        part = AttentionProgram(layout).attend(
            some, query[:, list(heads)], key[:, at], value[:, at], scores=model.of_heads(heads)
        )
        torch.testing.assert_close(part, whole[:, list(heads)])


@dataclass(frozen=True, repr=False)
class Broken(ScoreMod):
    how: str

    def modify(self, score: Any, q: Any, k: Any, head: Any) -> Any:
        if self.how == "branch":
            return score if q > k else score - 1
        if self.how == "shape":
            return score.sum()
        return score - float("inf") * (q - k) if self.how == "infinite" else (score > 0)

    @classmethod
    def examples(cls) -> Sequence[Broken]:
        return (cls("branch"),)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("branch", r"Broken.modify: fails on tensors \(RuntimeError: Boolean value .*Use operators and methods"),
        ("shape", r"expected a new score for each of \(1, 2, 3, 3\) pairs, got torch.float32 of \(\). Return"),
        ("truth", r"expected a new score for each of .* pairs, got torch.bool of"),
        ("infinite", r"gives a score that is not finite .* what is hidden is the policy's to say"),
    ],
)
def test_a_broken_modification_is_named(how: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_scores(bind_scores(Broken(how), 1, 2)[0])


PADDED = Padded((tuple(i >= 90 for i in range(200)), tuple(i < 150 for i in range(200))), prompts=(60, 150))
WINDOW_AND_SINKS = Union((Atom("SlidingWindow", (40,)), Atom("SinkTokens", (5,))))


def everything(cap: float, logit: float, gain: float, period: int) -> tuple[Part, ...]:
    return (
        Part("ALiBi"),
        Part("SoftCap", (cap,), heads="::2"),
        Part("SinkLogits", (logit,), heads=(1, 2)),
        Part("Uneven", (gain, period)),
    )


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.usefixtures("fresh_graphs")
def test_the_compiled_kernel_agrees_with_the_loops() -> None:
    """Padding, phases, heads that differ, the model's own cap and sinks; and one graph serves all values."""
    model = Model(layers=1, heads=4)
    recipe, own = Scope(WINDOW_AND_SINKS, Place(phase="prefill")), torch.linspace(-1, 1, 4)
    layer, layout, drawn = bound_layer(recipe, model, 0), layout_of(PADDED), tensors(2, 200)
    truth = oracle.mask(recipe, PADDED, model, 0)
    run = AttentionProgram(layout, kernel="flex")
    for parts in (everything(3.0, 0.5, 0.5, 7), everything(1.0, -2.0, 2.0, 3)):
        scores = layer_scores(parts, model, 0)
        out = run.attend(layer, *drawn, scores=scores, softcap=4.0, sink_logits_H=own)
        expected = score_oracle.attention(*drawn, truth, PADDED, parts, model, 0, softcap=4.0, own_sinks_H=own)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
def test_kernels_on_a_gpu() -> None:
    """With gradients, flex and blockwise against the dense mask."""
    model = Model(layers=1, heads=4)
    scores = layer_scores(everything(3.0, 0.5, 0.5, 7), model, 0)
    layer, layout = bound_layer(WINDOW_AND_SINKS, model, 0), layout_of(PADDED).to("cuda")
    results = []
    for kernel in ("dense", "flex", "blockwise"):
        inputs = [tensor.cuda().requires_grad_() for tensor in tensors(2, 200)]
        out = AttentionProgram(layout, kernel).attend(layer, *inputs, scores=scores)
        out.square().sum().backward()
        results.append([out, *(tensor.grad for tensor in inputs)])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert got is not None
            assert expected is not None
            assert (got - expected).norm() <= 0.01 * expected.norm()
