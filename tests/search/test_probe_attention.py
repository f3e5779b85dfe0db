"""Scorers that look into attention: the lazy ratio and soft gates, against whole matrices and finite differences."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import swaa
from hf.zoo import BY_TYPE
from search import gate_oracle
from search.probe_oracle import BASE, items_of
from swaa.errors import UserError
from swaa.hf.listening import listening
from swaa.search.book import ScoreBook
from swaa.search.gates import gate_gradients
from swaa.search.lazy import lazy_ratios
from swaa.search.probe import Probe
from swaa.search.scorers import GateGradient, HeadGate, LazyRatio

LAYERS, HEADS = 3, 4
ITEMS = items_of((9, 3), (14, 2), (11, 1))


@cache
def phi(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose norms, unlike Llama's, are in float64 when it is."""
    return BY_TYPE["phi"].build().to(dtype)


@cache
def slopes(at: int) -> torch.Tensor:
    """Float64 [N, L, H], by finite differences."""
    exact = phi(torch.float64)
    places = [(item, layer, head) for item in ITEMS for layer in range(LAYERS) for head in range(HEADS)]
    found = [gate_oracle.slope(exact, item, at, [(layer, head)]) for item, layer, head in places]
    return torch.tensor(found, dtype=torch.float64).view(len(ITEMS), LAYERS, HEADS)


@pytest.mark.parametrize("at", [0, 1])
def test_gates_slopes_are_finite_differences(at: int) -> None:
    probe = Probe(phi(), ITEMS, BASE, batch_size=2)
    by_head = gate_gradients(probe, at=at, by_head=True)
    torch.testing.assert_close(by_head, slopes(at), atol=1e-4, rtol=1e-2)
    by_layer = gate_gradients(probe, at=at, by_head=False)
    assert by_layer.shape == (len(ITEMS), LAYERS, 1)
    torch.testing.assert_close(by_layer[..., 0], slopes(at).sum(-1), atol=1e-4, rtol=1e-2)
    assert slopes(at).abs().amax((0, 2)).min() > 1e-3, "there was nothing to see"


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


def test_listening_needs_a_policy() -> None:
    with pytest.raises(UserError), listening(phi(), lambda call: None):
        pass
