"""Costs, explanations and pictures, against counts made by loops."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from swaa import FullAttention, SinkTokens, SlidingWindow, UserError, parse_policy
from swaa.compiler import ModelShape, estimate_cost, receptive_field
from swaa.compiler.explain import explain
from swaa.compiler.picture import fitting_length, mask_pictures
from swaa.compiler.timing import CPU_BFLOAT16, predict
from swaa.policies import bind
from swaa.report.draw import to_image, to_text
from swaa.report.explain import explanation_table, index_runs

SHAPE = ModelShape(num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8)
RECIPE = (SlidingWindow(5) | SinkTokens(2)).in_phase("prefill").on_layers("::2")


def window_and_sinks(q: int, k: int) -> bool:
    return k <= q and (q - k < 5 or k < 2)


def test_cost_equals_counting() -> None:
    prompt, new = 40, 7
    cost = estimate_cost(RECIPE, SHAPE, prompt, new)
    sliding = sum(window_and_sinks(q, k) for q in range(prompt) for k in range(prompt))
    causal = sum(q + 1 for q in range(prompt))
    decode = sum(q + 1 for q in range(prompt, prompt + new))
    assert [layer.prefill_pairs for layer in cost.layers] == [4 * sliding, 4 * causal] * 2
    assert [layer.decode_pairs for layer in cost.layers] == [4 * decode] * 4
    assert cost.visible_pair_share == (2 * sliding + 2 * causal + 4 * decode) / (4 * causal + 4 * decode)
    assert cost.prefill_flops == 4 * 8 * 4 * (2 * sliding + 2 * causal)
    assert cost.kv_share == 1  # full-attention decode needs every key
    assert cost.full_kv_bytes == 2 * 2 * 8 * 2 * 4 * prompt


def test_kv_share_is_window_less_one_plus_sinks() -> None:
    cost = estimate_cost(SlidingWindow(5) | SinkTokens(2), SHAPE, 40)
    assert cost.kv_share == (5 - 1 + 2) / 40


def test_kv_of_heads_is_kept_for_their_whole_group() -> None:
    by_head = estimate_cost(SlidingWindow(5).on_heads([0, 1, 2]), SHAPE, 40)  # KV head 1 serves heads 2 and 3
    assert by_head.layers[0].kept_keys == 4 + 40


@pytest.mark.parametrize("layers", [1, 3])
def test_receptive_field_grows_by_a_window_a_layer(layers: int) -> None:
    bound = bind(SlidingWindow(5), layers, 4)
    assert receptive_field(bound, 100) == 1 + layers * 4


def test_receptive_field_equals_following_every_edge() -> None:
    policy = parse_policy("SlidingWindow(4).on_layers('1::2', otherwise=SlidingWindow(9) & ~SlidingWindow(3))")
    reached = {59}
    for layer in reversed(range(4)):
        shows = (lambda d: 0 <= d < 4) if layer % 2 else (lambda d: 3 <= d < 9)
        reached |= {k for q in reached for k in range(q + 1) if shows(q - k)}
    assert receptive_field(bind(policy, 4, 4), 60) == len(reached)


def test_receptive_field_of_layers_and_heads_that_all_differ() -> None:
    policy = parse_policy(
        "stack(rule(SlidingWindow(4), layers=0), rule(SlidingWindow(8) | SinkTokens(1), layers=1),"
        " rule(SlidingWindow(16) & ~SlidingWindow(3), layers=2, heads=[0, 3]), rule(SlidingWindow(70) | SinkTokens(2)))"
    )
    shown = [
        lambda q, k: q - k < 4,
        lambda q, k: q - k < 8 or k < 1,
        lambda q, k: 3 <= q - k < 16 or q - k < 70 or k < 2,
        lambda q, k: q - k < 70 or k < 2,
    ]
    reached = {399}
    for sees in reversed(shown):
        reached |= {k for q in reached for k in range(q + 1) if sees(q, k)}
    assert receptive_field(bind(policy, 4, 4), 400) == len(reached)


def test_a_predicate_unknown_to_intervals_is_counted_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    from dataclasses import dataclass

    from swaa.policies import Predicate

    @dataclass(frozen=True, repr=False)
    class Odd(Predicate):
        def visible(self, q, k):  # type: ignore[no-untyped-def]
            return (q - k).remainder(2) == 0  # a method that intervals lack

        @classmethod
        def examples(cls) -> tuple[Odd, ...]:
            return (cls(),)

    pairs = sum((q - k) % 2 == 0 for q in range(30) for k in range(q + 1))
    cost = estimate_cost(Odd(), ModelShape(1, 1, 1, 8), 30)
    assert cost.layers[0].prefill_pairs == pairs
    assert cost.kv_share == 1
    assert "counted densely" in caplog.text
    assert receptive_field(bind(Odd(), 2, 1), 30) == 15


def test_explanation_is_json_and_prints() -> None:
    data = explain(RECIPE, SHAPE, 40, 7)
    assert json.loads(json.dumps(data)) == data
    assert [layer["layers"] for layer in data["layers"]] == [[0, 2], [1, 3]]
    assert data["layers"][0]["prefill"] == "SlidingWindow(5) | SinkTokens(2)"
    assert data["layers"][0]["decode"] == "FullAttention()"
    assert data["layers"][1]["prefill_kernel"] == "causal (full attention without padding)"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(explanation_table(data))
    text = console.export_text()
    assert "0,2" in text
    assert "receptive field" in text
    assert f"{1 / data['time']['request_ratio']:.2f}x" in text
    assert "AVX-512" in text, "the machine that times are predicted for"


def test_chunks_that_auto_takes_are_told_and_timed() -> None:
    sliding = SlidingWindow(256) | SinkTokens(10)
    smollm2 = ModelShape(num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64)
    data = explain(sliding, smollm2, 8192, 7)
    assert data["prefill_chunk_size"] == 2048
    predicted = predict(sliding, smollm2, 8192, 7, CPU_BFLOAT16, chunk=2048)
    assert data["time"]["chunked_prefill"] == predicted.prefill < data["time"]["prefill"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(explanation_table(data))
    text = console.export_text()
    assert all(
        row in text for row in ("prefill in one pass, s", "prefill in chunks of 2,048, s", "request in one pass, s")
    )
    data = explain(RECIPE, SHAPE, 8192, 7)
    assert (data["prefill_chunk_size"], data["time"]["chunked_prefill"]) == (None, None)


def test_times_are_predicted_for_the_machine_given() -> None:
    slow = dataclasses.replace(CPU_BFLOAT16, name="slow", linear_flops=CPU_BFLOAT16.linear_flops / 100)
    time = explain(RECIPE, SHAPE, 4000, 7, machine=slow)["time"]
    predicted = predict(RECIPE, SHAPE, 4000, 7, slow)
    assert time["machine"] == "slow"
    assert (time["request"], time["full_request"]) == (predicted.request, predicted.full_request)
    assert time["step_ratio"] == predicted.step / predicted.full_step
    assert time["prefill"] > explain(RECIPE, SHAPE, 4000, 7)["time"]["prefill"]


def test_without_new_tokens_there_is_no_decode_step_to_predict() -> None:
    data = explain(RECIPE, SHAPE, 40, 0)
    assert data["time"]["step_ratio"] is None
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(explanation_table(data))
    assert "decode step" not in console.export_text()


def test_explanation_is_whole_on_80_columns() -> None:
    """Nothing is cut off: the words of every policy and every reason stand in the print, and no line is longer."""
    policy = parse_policy("(SlidingWindow(2048) | SinkTokens(100)).in_phase('prefill').on_layers('::2')")
    data = explain(policy, SHAPE, 40, 7)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(explanation_table(data))
    text = console.export_text().partition("effective policy")[2]  # the policy itself stands above
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    for layer in data["layers"]:
        for name in ("prefill", "decode", "prefill_kernel", "decode_kernel"):
            assert all(word in text for word in layer[name].split())


@pytest.mark.parametrize(
    ("indices", "shown"),
    [([0, 1, 2, 3], "0-3"), ([1, 3, 5], "1-5:2"), ([0, 4], "0,4"), ([2], "2"), ([0, 1, 2, 9, 29], "0-2,9,29")],
)
def test_index_runs(indices: list[int], shown: str) -> None:
    assert index_runs(indices) == shown


def test_text_picture() -> None:
    pictures = mask_pictures(RECIPE, num_layers=2, num_heads=1, length=9, prompt_length=8, resolution=32)
    assert to_text(pictures).splitlines() == [
        "layers 0",
        "prefill: SlidingWindow(5) | SinkTokens(2)",
        "decode: FullAttention()",
        *("██" * n for n in range(1, 8)),
        "████··██████████",
        "-" * 18 + " decode",
        "██" * 9,
        "",
        "layers 1",
        "FullAttention()",
        *("██" * n for n in range(1, 9)),
        "-" * 18 + " decode",
        "██" * 9,
    ]


def test_cells_hold_the_visible_share() -> None:
    policy = SlidingWindow(3)
    (picture,) = mask_pictures(policy, num_layers=1, num_heads=1, length=10, prompt_length=10, resolution=3)
    for row, line in enumerate(picture["cells"]):
        for column, share in enumerate(line):
            pairs = [
                q - k < 3
                for q in range(4 * row, min(10, 4 * row + 4))
                for k in range(4 * column, min(10, 4 * column + 4))
                if k <= q
            ]
            assert share == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_heads_that_differ_get_pictures_of_their_own() -> None:
    pictures = mask_pictures(
        SlidingWindow(3).on_heads(0), num_layers=2, num_heads=4, length=9, prompt_length=9, resolution=9
    )
    assert [picture["heads"] for picture in pictures] == [[0], [1, 2, 3]]


def test_image_is_written(tmp_path: Path) -> None:
    pictures = mask_pictures(RECIPE, num_layers=4, num_heads=1, length=24, prompt_length=16, resolution=32)
    image = to_image(pictures, tmp_path / "mask.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 10_000


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mask.gif", r"output: expected a file ending in .png, .svg, .pdf"),
        ("no/mask.png", "the folder .*no does not exist"),
    ],
)
def test_bad_image_paths(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_image([], tmp_path / path)


def test_bad_lengths() -> None:
    with pytest.raises(UserError, match="prompt_length: expected an int >= 1"):
        estimate_cost(RECIPE, SHAPE, 0)
    with pytest.raises(UserError, match=r"shape.num_kv_heads: expected a divisor of num_heads, got 3"):
        ModelShape(2, 4, 3, 8)
    with pytest.raises(UserError, match="seq_len: expected 1 to 8192 tokens, got 10000"):
        mask_pictures(FullAttention(), num_layers=1, num_heads=1, length=10_000, prompt_length=1, resolution=8)


def test_fitting_length_follows_the_largest_parameter() -> None:
    assert fitting_length(FullAttention()) == 24
    assert fitting_length(SlidingWindow(200).on_layers(1, otherwise=RECIPE)) == 400
    assert fitting_length(SlidingWindow(100_000)) == 8192


def test_a_predicate_that_is_no_arithmetic_is_refused_by_name() -> None:
    from dataclasses import dataclass

    from swaa.policies import Predicate

    @dataclass(frozen=True, repr=False)
    class Branching(Predicate):
        def visible(self, q, k):  # type: ignore[no-untyped-def]
            return q - k < 8 and k >= 0

        @classmethod
        def examples(cls) -> tuple[Branching, ...]:
            return (cls(),)

    with pytest.raises(
        UserError, match=r"Branching.visible: fails on index tensors \(RuntimeError: .*Use operators only"
    ):
        estimate_cost(Branching(), SHAPE, 30)
