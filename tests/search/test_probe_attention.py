"""Scorers that look into attention: the lazy ratio and soft gates, against whole matrices and finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import swaa
from hf.zoo import BY_TYPE, Architecture
from search import gate_oracle
from search.probe_oracle import BASE, BOTH, WINDOW, items_of
from swaa.compiler import program
from swaa.compiler.plan import Job, KernelPlan, choose_kernel
from swaa.errors import UserError
from swaa.hf.listening import listening
from swaa.policies import LayerPolicy
from swaa.search.book import ScoreBook
from swaa.search.gates import gate_gradients
from swaa.search.lazy import lazy_ratios
from swaa.search.probe import Probe
from swaa.search.scorers import AddOne, DropOne, GateGradient, HeadGate, LazyRatio, Scorer

LAYERS, HEADS = 3, 4
ITEMS = items_of((9, 3), (14, 2), (11, 1))


@cache
def phi(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose norms, unlike Llama's, are in float64 when it is."""
    return BY_TYPE["phi"].build().to(dtype)


@cache
def slopes(at: int, phases: bool = True) -> torch.Tensor:
    """Float64 [N, L, H], by finite differences."""
    exact = phi(torch.float64)
    places = [(item, layer, head) for item in ITEMS for layer in range(LAYERS) for head in range(HEADS)]
    found = [gate_oracle.slope(exact, item, at, [(layer, head)], phases=phases) for item, layer, head in places]
    return torch.tensor(found, dtype=torch.float64).view(len(ITEMS), LAYERS, HEADS)


@pytest.mark.parametrize("phases", [True, False], ids=["prefill", "both"])
@pytest.mark.parametrize("at", [0, 1])
def test_gates_slopes_are_finite_differences(at: int, phases: bool) -> None:
    probe = Probe(phi(), ITEMS, BASE if phases else BOTH, batch_size=2)
    wanted = slopes(at, phases)
    by_head = gate_gradients(probe, at=at, by_head=True)
    torch.testing.assert_close(by_head, wanted, atol=1e-4, rtol=1e-2)
    by_layer = gate_gradients(probe, at=at, by_head=False)
    assert by_layer.shape == (len(ITEMS), LAYERS, 1)
    torch.testing.assert_close(by_layer[..., 0], wanted.sum(-1), atol=1e-4, rtol=1e-2)
    assert wanted.abs().amax((0, 2)).min() > 1e-3, "there was nothing to see"


def test_scores_of_gates_are_what_opening_promises() -> None:
    probe = Probe(phi(), ITEMS, BASE)
    wanted = -slopes(0).mean(0)
    assert GateGradient().score(probe) == pytest.approx(wanted.sum(-1).tolist(), abs=1e-4)
    assert HeadGate().score(probe) == pytest.approx(wanted.flatten().tolist(), abs=1e-4)
    assert probe.evaluations == 2 * 3 * len(ITEMS)  # each: a forward pass, and a backward pass of twice the work
    order = sorted((float(-wanted[layer, head]), layer, head) for layer in range(3) for head in range(4))
    assert HeadGate().choose(probe, 3) == tuple(sorted((layer, head) for _, layer, head in order[:3]))
    assert HeadGate().units(probe)[5] == (1, 1)


def test_a_model_is_left_as_it_was() -> None:
    model = BY_TYPE["llama"].build()
    weight = model.model.layers[0].self_attn.q_proj.weight  # type: ignore[index, union-attr]
    weight.requires_grad_(False)
    asked = [weight.requires_grad for weight in model.parameters()]
    before = model.config._attn_implementation
    probe = Probe(model, ITEMS, BASE)
    gate_gradients(probe, at=0, by_head=False)
    lazy_ratios(probe, num_sinks=1, recent=2, last_queries=3)
    assert [weight.requires_grad for weight in model.parameters()] == asked
    assert all(weight.grad is None for weight in model.parameters())
    assert model.config._attn_implementation == before
    assert swaa.saved_policy(model.config) is None


@cache
def matrices(architecture: str, place: int) -> tuple[torch.Tensor, ...]:
    """The model's own attention matrices of a prompt, [H, Q, K] for each layer; no padding, no policy."""
    ids = torch.tensor([ITEMS[place].ids])
    with torch.no_grad():
        out = BY_TYPE[architecture].build()(input_ids=ids, use_cache=False, output_attentions=True)
    return tuple(weights[0] for weights in out.attentions)


@given(
    st.sampled_from(["llama", "gemma2", "gpt2", "phi"]),
    st.integers(0, 4),
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(1, 3),
)
@settings(max_examples=max(5, settings.default.max_examples // 50))
def test_lazy_ratios_are_those_of_whole_matrices(
    architecture: str, num_sinks: int, recent: int, last: int, batch_size: int
) -> None:
    probe = Probe(BY_TYPE[architecture].build(), ITEMS, BASE, batch_size=batch_size)
    got = lazy_ratios(probe, num_sinks=num_sinks, recent=recent, last_queries=last)
    wanted = [
        [gate_oracle.lazy_ratio(weights, num_sinks, recent, last) for weights in matrices(architecture, place)]
        for place in range(len(ITEMS))
    ]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), atol=1e-4, rtol=1e-3)


def test_the_laziest_layers_have_the_smallest_scores() -> None:
    probe = Probe(phi(), ITEMS, BASE)
    scorer = LazyRatio(num_sinks=1, recent=2, last_queries=4)
    ratios = lazy_ratios(probe, num_sinks=1, recent=2, last_queries=4).mean(0)
    assert scorer.score(probe) == pytest.approx((1 - ratios).tolist())
    assert scorer.choose(probe, 1) == (int(ratios.argmin()),)


def test_scores_come_from_the_book(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    scorers = (LazyRatio(1, 2, 4), GateGradient(), GateGradient(1), HeadGate())
    first = Probe(phi(), ITEMS, BASE, book=ScoreBook(path))
    wanted = [scorer.score(first) for scorer in scorers]
    again = Probe(phi(), ITEMS, BASE, book=ScoreBook(path))
    assert [scorer.score(again) for scorer in scorers] == wanted
    assert again.evaluations == 0
    assert len(set(wanted)) == len(scorers)


def test_layers_that_slide_by_themselves_gain_nothing() -> None:
    """Their own window is the base's, so that full attention on them is what they do anyway."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = Architecture("gemma3_text", {"sliding_window": WINDOW, "layer_types": kinds}).build()
    probe = Probe(model, ITEMS, BASE, batch_size=2)
    for at in (0, 1):
        slopes_NLH = gate_gradients(probe, at=at, by_head=True)
        assert slopes_NLH[:, [0, 2]].abs().max() == 0
        assert slopes_NLH[:, 1].abs().min() > 0
    shares = lazy_ratios(probe, num_sinks=0, recent=WINDOW, last_queries=4)
    torch.testing.assert_close(shares[:, [0, 2]], torch.ones(len(ITEMS), 2, dtype=torch.float64))
    assert shares[:, 1].max() < 1
    gained = AddOne().score(probe)
    assert gained[0] == gained[2] == 0 != gained[1]


def test_heads_that_share_keys_have_gates_of_their_own() -> None:
    """To first order what a head gains is its slope; two query heads stand on each key head."""
    model = BY_TYPE["llama"].build()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    with torch.no_grad():
        for layer in model.model.layers:  # type: ignore[union-attr]
            layer.self_attn.o_proj.weight.mul_(3e-4)  # type: ignore[union-attr, operator]
    probe = Probe(model.double(), ITEMS, BASE)
    slopes_NLH = gate_gradients(probe, at=0, by_head=True)
    nothing = probe.nll([])
    for layer in range(LAYERS):
        for head in range(HEADS):
            gained = probe.nll([(layer, head)]) - nothing
            torch.testing.assert_close(slopes_NLH[:, layer, head], gained, atol=3e-6, rtol=0.03)
    assert slopes_NLH.abs().amax((0, 1)).min() > 3e-5, "there was nothing to see"


@pytest.mark.parametrize("kernel", ["dense", "blockwise"])
def test_every_look_at_attention_runs_on_the_kernel_asked_for(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []

    def watched(layer: LayerPolicy, job: Job, asked: str = "auto") -> KernelPlan:
        requested.append(asked)
        return choose_kernel(layer, job, asked)

    auto = Probe(phi(), ITEMS, BASE)
    monkeypatch.setattr(program, "choose_kernel", watched)
    probe = Probe(phi(), ITEMS, BASE, kernel=kernel)
    looks: list[Callable[[Probe], torch.Tensor]] = [
        lambda of: of.kl([1]),
        lambda of: gate_gradients(of, at=0, by_head=True),
        lambda of: gate_gradients(of, at=1, by_head=False),
        lambda of: lazy_ratios(of, num_sinks=1, recent=2, last_queries=3),
    ]
    for look in looks:
        requested.clear()
        got = look(probe)
        assert set(requested) <= {kernel}
        torch.testing.assert_close(got, look(auto), atol=1e-5, rtol=1e-4)
    requested.clear()
    gate_gradients(probe, at=0, by_head=True)
    batches = len(probe.batches)
    assert requested == [kernel] * (2 * LAYERS * batches), "both policies of each layer"
    assert probe.subject != auto.subject


def test_a_kernel_without_a_backward_pass_is_refused_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(phi(), ITEMS, BASE, kernel="flex")
    monkeypatch.setattr(program, "choose_kernel", None)  # no layer comes to asking for one
    with pytest.raises(UserError, match="kernel: 'flex' was asked for, but FlexAttention has no backward pass on CPU"):
        GateGradient().score(probe)
    assert probe.evaluations == 0
    with pytest.raises(UserError, match="kernel: expected 'auto' or 'flex'"):
        Probe(phi(), ITEMS, BASE, kernel="flx")


def apart(dtype: torch.dtype) -> PreTrainedModel:
    """A model whose layers matter more the further up they are."""
    model = Architecture("llama", {"num_hidden_layers": 4}).build()
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):  # type: ignore[union-attr, arg-type]
            layer.self_attn.o_proj.weight.mul_(0.2 * 3.0**index)
    return model.to(dtype)


@pytest.mark.parametrize(
    "scorer", [GateGradient(0), GateGradient(1), LazyRatio(1, 2, 4), AddOne()], ids=lambda s: s.label
)
def test_bfloat16_ranks_as_float32_where_layers_are_apart(scorer: Scorer) -> None:
    exact, rough = (scorer.score(Probe(apart(dtype), ITEMS, BASE)) for dtype in (torch.float32, torch.bfloat16))
    ranked = sorted(range(4), key=lambda layer: exact[layer])
    gaps = [exact[later] - exact[earlier] for earlier, later in itertools.pairwise(ranked)]
    errors = [abs(one - other) for one, other in zip(exact, rough, strict=True)]
    assert 0 < max(errors) < min(gaps)
    assert sorted(range(4), key=lambda layer: rough[layer]) == ranked


def test_bfloat16_states_that_are_kept_change_nothing() -> None:
    model = BY_TYPE["llama"].build().to(torch.bfloat16)
    shared, whole = Probe(model, ITEMS, BASE), Probe(model, ITEMS, BASE, memory=0)
    assert DropOne("kl").score(shared) == DropOne("kl").score(whole)
    assert shared.evaluations < whole.evaluations


def test_listening_needs_a_policy() -> None:
    with pytest.raises(UserError), listening(phi(), lambda call: None):
        pass
