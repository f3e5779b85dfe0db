"""FlexAttention as it is run: compiled, through a program, on bucketed lengths. Each graph takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

import oracle
from oracle import Atom, Complement, Contiguous, Model, Packed, Padded, Place, Scope, Turns, Union
from strategies import bound_layer, layout_of
from swaa import SinkTokens, SlidingWindow
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import has_cpp_compiler
from swaa.compiler.program import AttentionProgram
from swaa.policies import bind

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile needs a C++ compiler"),
]


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def tensors(batch: int, heads: int, kv_heads: int, queries: int, keys: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(queries)
    return [
        torch.randn(batch, h, length, 16, generator=random)
        for h, length in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    ]


WINDOW_AND_SINKS = Union((Atom("SlidingWindow", (40,)), Atom("SinkTokens", (5,))))
PADDED = Padded(
    (tuple(i >= 90 for i in range(200)), tuple(i < 150 for i in range(200)), (True,) * 200), prompts=(60, 150, 0)
)
CASES = {
    "phases, mixed padding, grouped queries": (Scope(WINDOW_AND_SINKS, Place(phase="prefill")), PADDED),
    "heads that differ, of which some see nothing at first": (
        Scope(
            WINDOW_AND_SINKS,
            Place(heads="::2"),
            Complement(Union((Atom("Chunked", (50,)), Atom("SlidingWindow", (30,))))),
        ),
        PADDED,
    ),
    "packed documents with prompts of their own": (
        Scope(WINDOW_AND_SINKS, Place(phase="decode"), Atom("Dilated", (3,))),
        Packed(((100, 40, 60), (200,)), ((30, 0, 60), (90,))),
    ),
    "turns that change the phase again and again": (
        Scope(WINDOW_AND_SINKS, Place(phase="decode"), Atom("Dilated", (3,))),  # as above: one kernel for both
        Turns(Packed(((100, 40, 60), (200,))), (tuple(i % 70 >= 25 for i in range(200)),)),
    ),
    "a chunk over a cache that begins late": (WINDOW_AND_SINKS, Contiguous(70, 150, 230, 150, prompts=(260, 240))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_compiled_kernel_agrees_with_the_loops(name: str) -> None:
    recipe, scene = CASES[name]
    model = Model(layers=1, heads=4)
    samples = oracle.slots(scene)
    query, key, value = tensors(len(samples), 4, 2, len(samples[0][0]), len(samples[0][1]))
    run = AttentionProgram(layout_of(scene), kernel="flex")
    out = run.attend(bound_layer(recipe, model, 0), query, key, value)
    assert graphs() == 1, "compiled, as one graph"
    expected = oracle.attention(query, key, value, oracle.mask(recipe, scene, model, 0))
    assert out.shape == query.shape
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    hidden = (expected == 0).all(-1)
    assert hidden[-1].any() or "nothing" not in name, "in the sample without padding"
    assert (out[hidden] == 0).all()


def test_one_graph_serves_all_values_of_one_structure() -> None:
    """Window sizes, sink counts, prompt lengths, offsets and padding reach the kernel as tensors.

    It is the kernel of the first case above, too, which torch has kept.
    """
    for window, sinks, prompt, length in ((8, 1, 10, 200), (9, 4, 100, 200), (64, 100, 150, 250), (3, 2, 0, 256)):
        layer = bind((SlidingWindow(window) | SinkTokens(sinks)).in_phase("prefill"), 1, 4).layers[0]
        query, key, value = tensors(3, 4, 2, length, length)
        real = torch.arange(length) >= torch.tensor([[0], [sinks], [length - 40]])
        layout = TokenLayout.padded(real, prompt_lengths=torch.tensor([prompt, prompt + 3, 20]))
        out = AttentionProgram(layout, kernel="flex").attend(layer, query, key, value)
        dense = AttentionProgram(layout, kernel="dense").attend(layer, query, key, value)
        torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
        assert graphs() == 1, (window, sinks, prompt, length)


def test_softcap_in_the_compiled_kernel() -> None:
    layer = bind(SlidingWindow(30), 1, 4).layers[0]
    query, key, value = tensors(1, 4, 2, 100, 100)
    layout = TokenLayout.contiguous(100)
    for _ in range(2):
        out = AttentionProgram(layout, kernel="flex").attend(layer, query * 5, key, value, softcap=2.0, scale=0.4)
        dense = AttentionProgram(layout, kernel="dense").attend(layer, query * 5, key, value, softcap=2.0, scale=0.4)
        torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    assert graphs() == 1
