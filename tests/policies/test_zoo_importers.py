"""Head patterns of DuoAttention and lazy layers of LightTransfer, in the formats that those projects have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from swaa import SinkTokens, SlidingWindow, StreamingHeads, UserError
from swaa.policies.importers import duo_attention, light_transfer

SCORES = [[0.605, -9.58e-05, 0.96875, 0.6836], [0.996, 0.0, 0.8125, 1.004], [0.0, 0.992, 0.05, 0.9766]]
CONFIG = {"model_name": "models/Tiny", "sink_size": 64, "recent_size": 256, "deploy_sink_size": None, "sparsity": None}
STREAMING = SinkTokens(64) | SlidingWindow(256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What DuoAttention's training leaves: numpy's text format, and its own arguments."""
    np.savetxt(tmp_path / "full_attention_heads.tsv", np.array(SCORES), delimiter="\t")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return tmp_path


def test_heads_below_the_threshold_stream_with_their_whole_group(folder: Path) -> None:
    heads = ((2, 3), (2, 3), (0, 1, 4, 5))  # two query heads for each key-value head
    policy = duo_attention(folder, queries_per_kv_head=2, threshold=0.5)
    assert policy == StreamingHeads(heads, 64, 256)
    assert policy == duo_attention(folder / "full_attention_heads.tsv", queries_per_kv_head=2, threshold=0.5)
    assert duo_attention(folder, queries_per_kv_head=1, threshold=0.605) == StreamingHeads(
        ((1,), (1,), (0, 2)), 64, 256
    )
    chosen = duo_attention(folder, queries_per_kv_head=2, threshold=0.5, num_sinks=4, window_size=8)
    assert chosen == StreamingHeads(heads, 4, 8)
    (folder / "config.json").unlink()
    assert chosen == duo_attention(folder, queries_per_kv_head=2, threshold=0.5, num_sinks=4, window_size=8)


@settings(max_examples=max(20, settings.default.max_examples // 20))
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    sparsity=st.one_of(st.sampled_from((0.0, 0.25, 0.5, 1.0)), st.floats(0, 1)),
    seed=st.integers(0, 999),
)
def test_sparsity_is_the_originals_quantile(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], sparsity: float, seed: int
) -> None:
    scores = np.random.default_rng(seed).permutation(shape[0] * shape[1]).reshape(shape) / 20
    rank = sparsity * (scores.size - 1)
    assume(rank == round(rank) or abs(rank - round(rank)) > 1e-9)  # nearer to a head, numpy's rounding decides
    file = tmp_path_factory.mktemp("heads") / "heads.tsv"
    np.savetxt(file, scores, delimiter="\t")
    threshold = 2 if sparsity >= 1 else np.quantile(scores, sparsity)  # as duo_attn/utils.py has it
    below = tuple(tuple(np.flatnonzero(row < threshold).tolist()) for row in scores)
    policy = duo_attention(file, queries_per_kv_head=1, sparsity=sparsity, num_sinks=1, window_size=2)
    assert policy == StreamingHeads(below, 1, 2)


def write(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "full_attention_heads.tsv").write_text(text, encoding="utf-8") and None


def no_change(folder: Path) -> None:
    pass


DUO_ERRORS: list[tuple[Callable[[Path], Any], dict[str, Any], str]] = [
    (write("0.5\t1\n0.5\n"), {}, "full_attention_heads.tsv, line 2: expected 2 numbers, as on line 1, got 1."),
    (write("0.5\t1\n0.5\tx\n"), {}, "line 2, column 2: expected a number from 0 to 1, got 'x'. It should be Duo"),
    (write("0.5\t37"), {}, "line 1, column 2: expected a number from 0 to 1, got '37'."),
    (write("0.5\tnan"), {}, "line 1, column 2: expected a number from 0 to 1, got 'nan'."),
    (write("\n"), {}, "full_attention_heads.tsv: the file is empty."),
    (lambda folder: (folder / "full_attention_heads.tsv").write_bytes(b"\xff"), {}, "is no text."),
    (lambda folder: (folder / "full_attention_heads.tsv").unlink(), {}, "cannot be read (No such file or directory)."),
    (lambda folder: (folder / "config.json").unlink(), {}, "config.json: cannot be read (No such file or directory)."),
    (lambda folder: (folder / "config.json").write_text("{"), {}, "config.json, line 1, column 2: no JSON (Expecting"),
    (
        lambda folder: (folder / "config.json").write_text("{}"),
        {},
        "config.json: it has no 'sink_size'. Give num_sinks",
    ),
    (no_change, {"threshold": 0.5}, "duo_attention: expected either sparsity or threshold, got 'sparsity=0.5, thresh"),
    (no_change, {"sparsity": None}, "duo_attention: expected either sparsity or threshold, got"),
    (no_change, {"sparsity": 50}, "duo_attention.sparsity: expected a number from 0 to 1, got 50."),
    (no_change, {"queries_per_kv_head": 0}, "duo_attention.queries_per_kv_head: expected an int >= 1 (heads), got 0."),
    (no_change, {"num_sinks": -1}, "StreamingHeads.num_sinks: expected an int >= 0 (tokens), got -1."),
]


@pytest.mark.parametrize(("spoil", "named", "message"), DUO_ERRORS, ids=[message[:40] for *_, message in DUO_ERRORS])
def test_what_is_wrong_with_a_head_pattern_is_told(
    folder: Path, spoil: Callable[[Path], Any], named: dict[str, Any], message: str
) -> None:
    spoil(folder)
    with pytest.raises(UserError) as told:
        duo_attention(folder, **{"queries_per_kv_head": 2, "sparsity": 0.5, **named})
    assert message in str(told.value)


FREQUENCIES = [
    {"layer_idx": layer, "count": count, "frequency": count / 9} for layer, count in ((5, 9), (2, 9), (7, 4))
]
LAZY = {
    "model_path": "/models/Tiny",
    "method": "frequency_count",
    "total_samples": 9,
    "selected_lazy_layers": [2, 5, 7],
    "non_lazy_layers": [0, 1, 3, 4, 6],
    "layer_frequencies": FREQUENCIES,
}


@pytest.mark.parametrize(
    "content", [LAZY, [7, 2, 5], {"lazy_layers": [2, 5, 7]}], ids=["SWAA's", "a list", "a mapping"]
)
def test_lazy_layers(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "lazy.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert light_transfer(file) == (SinkTokens(4) | SlidingWindow(1020)).on_layers([2, 5, 7])
    assert light_transfer(file, num_sinks=64, window_size=256) == STREAMING.on_layers([2, 5, 7])


def test_the_most_frequent_lazy_layers(tmp_path: Path) -> None:
    file = tmp_path / "lazy.json"
    file.write_text(json.dumps(LAZY), encoding="utf-8")
    for count, layers in ((1, [5]), (2, [2, 5]), (3, [2, 5, 7])):
        assert light_transfer(file, num_lazy=count, num_sinks=64, window_size=256) == STREAMING.on_layers(layers)


LAZY_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("{}", {}, "lazy.json: expected a list of layers, or a mapping with 'selected_lazy_layers' or 'lazy_layers', got"),
    ("[1, -2]", {}, "lazy.json: layer 1: expected an int >= 0 (layers), got -2."),
    ('[1, "2"]', {}, "lazy.json: layer 1: expected an int >= 0 (layers), got '2'."),
    ("[1, 1]", {}, "lazy.json: layers[1]: expected an int > 1, the one before, got 1."),
    ("[]", {}, "lazy.json: layers: expected a tuple with at least one of ints >= 0 (layers), got ()."),
    ("[1,", {}, "lazy.json, line 1, column 4: no JSON (Expecting value)."),
    ("[1]", {"num_lazy": 1}, "lazy.json: num_lazy needs 'layer_frequencies', a list of mappings with"),
    (json.dumps(LAZY), {"num_lazy": 4}, "light_transfer.num_lazy: expected at most the 3 layers of"),
    (json.dumps(LAZY), {"num_lazy": 0}, "light_transfer.num_lazy: expected an int >= 1 (layers), got 0."),
    (json.dumps(LAZY), {"window_size": 0}, "LazyLayers.window_size: expected an int >= 1 (tokens), got 0."),
]


@pytest.mark.parametrize(("text", "named", "message"), LAZY_ERRORS, ids=[message[:60] for *_, message in LAZY_ERRORS])
def test_what_is_wrong_with_lazy_layers_is_told(tmp_path: Path, text: str, named: dict[str, Any], message: str) -> None:
    file = tmp_path / "lazy.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as told:
        light_transfer(file, **named)
    assert message in str(told.value)
