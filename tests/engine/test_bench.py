"""Benchmarks on a tiny random model: what is compared, timed, kept and told. No time is asserted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import swaa
from swaa.compiler import chunking
from swaa.compiler.timing import CPU_FLOAT32, floor_work, full_prefill_work, prefill_work
from swaa.config import Baseline, Benchmark, load_benchmark
from swaa.engine import bench_memory, bench_rows
from swaa.engine.bench import load_model, make_prompt, run_benchmark
from swaa.engine.bench_check import Checker
from swaa.engine.bench_expect import benchmark_shape, expectations, fitted_machine
from swaa.engine.bench_measure import LeftOut, Reading, stream, time_request
from swaa.engine.bench_memory import watch_memory
from swaa.engine.bench_rows import ModelRow, make_row
from swaa.engine.interrupt import Interrupted, StopRequested
from swaa.errors import UserError
from swaa.hf import held_bytes
from swaa.hf.baselines import make_config, native_window_model, random_model
from swaa.hf.shape import model_shape, shape_of
from swaa.policies import parse_policy
from swaa.recipe import Recipe
from swaa.report.bench import Run

LAYERS, HEADS, KV_HEADS, SIZE = 2, 4, 2, 8
WINDOW, SINKS = 8, 2
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": 64,
    "initializer_range": 0.5,
    "tie_word_embeddings": True,
}
BENCH = f"""
model: {{dtype: float32, device: cpu, config: {json.dumps(CONFIG)}}}
recipes:
  - {{name: sliding, policy: SlidingWindow({WINDOW}) | SinkTokens({SINKS})}}
  - {{name: by phase, policy: "SlidingWindow({WINDOW}).in_phase('prefill').on_layers('::2')"}}
baselines: [full, floor]
lengths: [40, 24]
new_tokens: 4
repeats: 2
"""


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Benchmark]:
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH)
    return lambda *overrides: load_benchmark(path, overrides, output=tmp_path / "out")


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module")
def model() -> Any:
    made = random_model(CONFIG, dtype="float32", device="cpu", seed=0)
    made.generation_config.eos_token_id = None
    return made


def prompt_of(length: int) -> torch.Tensor:
    return torch.randint(64, (1, length), generator=torch.Generator().manual_seed(1))


# ---- one request


@pytest.mark.parametrize("policy", [None, "SlidingWindow(8) | SinkTokens(2)", "SlidingWindow(8).in_phase('prefill')"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_the_loop_generates_what_generate_does(model: Any, policy: str | None, chunk: int | None) -> None:
    prompt, new = prompt_of(40), 6
    handle = swaa.apply_policy(model, policy) if policy else None
    try:
        real = torch.ones_like(prompt)
        told = model.generate(prompt, attention_mask=real, max_new_tokens=new, do_sample=False, pad_token_id=0)
        with torch.no_grad():
            steps = itertools.islice(stream(model, prompt, Reading(chunk, tells_prompt=policy is not None)), new)
            tokens = [int(logits.argmax()) for logits, _ in steps]
    finally:
        if handle is not None:
            handle.remove()
    assert tokens == told[0, 40:].tolist()


def test_a_request_is_timed_step_by_step(model: Any) -> None:
    timing = time_request(model, prompt_of(40), 4, Reading())
    assert timing.prefill_seconds > 0
    assert len(timing.step_seconds) == 3
    assert timing.kv_bytes == 2 * LAYERS * KV_HEADS * SIZE * 4 * 40
    assert time_request(model, prompt_of(40), 1, Reading()).step_seconds == ()


def test_a_sliding_recipe_holds_its_window_and_sinks(model: Any) -> None:
    with swaa.apply_policy(model, swaa.SlidingWindow(WINDOW) | swaa.SinkTokens(SINKS)):
        timing = time_request(model, prompt_of(40), 4, Reading(tells_prompt=True))
    assert timing.kv_bytes == 2 * LAYERS * KV_HEADS * SIZE * 4 * (WINDOW - 1 + SINKS)


def test_held_bytes_are_those_of_the_storage(model: Any) -> None:
    cache = model(prompt_of(10)).past_key_values
    whole = held_bytes(cache)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, -1:], layer.values[:, :, -1:]  # views free nothing
    assert held_bytes(cache) == whole == 2 * LAYERS * KV_HEADS * SIZE * 4 * 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("forgets", [True, False])
def test_the_peak_of_memory_is_seen(forgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not forgets:
        monkeypatch.setattr(bench_memory, "_forget_peak", lambda: False)
    size = 64 << 20
    torch.ones(2 * size, dtype=torch.uint8)  # an earlier and higher peak
    with watch_memory(torch.device("cpu")) as memory:
        block = torch.ones(size, dtype=torch.uint8)
        for _ in range(20):
            block.add_(1)
        del block
    assert memory.rest_bytes is not None
    assert memory.peak_bytes is not None
    assert 0.9 * size <= memory.peak_bytes - memory.rest_bytes <= 1.6 * size


# ---- baselines


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_native_window_is_swaas_window_on_the_same_weights(kind: str) -> None:
    own = random_model({**CONFIG, "model_type": kind}, dtype="float32", device="cpu", seed=0)
    windowed = native_window_model(own, WINDOW)
    weights = [made.get_input_embeddings().weight.data_ptr() for made in (own, windowed)]
    assert weights[0] == weights[1], "they are shared"
    prompt = prompt_of(40)
    with torch.no_grad():
        native = windowed(prompt).logits
        with swaa.apply_policy(own, swaa.SlidingWindow(WINDOW), kernel="dense"):
            torch.testing.assert_close(native, own(prompt).logits, rtol=1e-4, atol=1e-4)
        assert (native - own(prompt).logits).abs().max() > 0.01


def test_a_model_without_a_native_window_leaves_the_row_out(bench: Callable[..., Benchmark]) -> None:
    own = random_model(
        {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1}, dtype="float32", device="cpu", seed=0
    )
    with pytest.raises(LeftOut, match="native_window: model type 'gpt2' has no window in transformers. Leave"):
        make_row(Baseline("native_window", window=8), bench(), own)


def test_the_floor_attends_to_nothing(bench: Callable[..., Benchmark], model: Any) -> None:
    row = make_row(Baseline("floor"), bench(), model)
    assert isinstance(row, ModelRow)
    other = prompt_of(40)
    other[0, :-1] = 3
    with torch.no_grad(), row.dressed():
        first, second = (next(stream(model, ids, row.reading(ids.shape[1])))[0] for ids in (prompt_of(40), other))
    torch.testing.assert_close(first, second)
    assert row.request(prompt_of(40), 3).kv_bytes is None
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llamma"}, "model.config: Unrecognized model identifier: llamma. Mend this value."),
        (
            {**CONFIG, "num_hiden_layers": 3},
            "unknown field 'model.config.num_hiden_layers'. Did you mean",
        ),
        ({**CONFIG, "hidden_size": "big"}, "model.config: Validation error for field 'hidden_size'.* expected int"),
    ],
)
def test_a_config_that_transformers_would_guess_at_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(config)


def test_shapes_need_no_weights(model: Any, tmp_path: Path) -> None:
    shape = model_shape(model)
    attention = 2 * 32 * 32 + 2 * 32 * KV_HEADS * SIZE
    assert (shape.hidden_size, shape.layer_weights, shape.head_weights) == (32, attention + 3 * 32 * 48, 64 * 32)
    model.save_pretrained(tmp_path)
    assert shape_of(tmp_path, torch.float32) == shape_of(CONFIG, torch.float32) == shape
    sparse = {**CONFIG, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 1}
    one, two = (shape_of({**sparse, "num_experts_per_tok": chosen}).layer_weights for chosen in (1, 2))
    assert two - one == 3 * 32 * 48, "only the experts that a token gets are counted"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="its config cannot be read .* Check the name."):
        shape_of(tmp_path)


# ---- the check before the timing


def checked(bench: Benchmark, entry: Any, length: int = 40) -> Any:
    own = load_model(bench)
    row = make_row(entry, bench, own)
    assert isinstance(row, ModelRow)
    return Checker(bench, own, make_prompt(bench, own, length)).check(entry, row)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("overrides", [[], ["prefill_chunk_size=16"], ["model.kernel=blockwise"]])
def test_what_is_right_is_found_equal(bench: Callable[..., Benchmark], dtype: str, overrides: list[str]) -> None:
    asked = bench(f"model.dtype={dtype}", *overrides)
    for entry in (*asked.recipes, Baseline("full"), Baseline("native_window", window=WINDOW)):
        check = checked(asked, entry)
        assert check.equal, check
        assert check.found["float32_difference"] < 1e-4
        assert ("dtype_error" in check.found) == (dtype == "bfloat16")
    assert checked(asked, Baseline("floor")) is None


def test_what_is_read_in_planned_chunks_is_found_equal(
    bench: Callable[..., Benchmark], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_ON_CPU", 8)
    asked = bench("prefill_chunk_size=auto")
    read = Recipe("read", parse_policy("SlidingWindow(8).in_phase('prefill')"))
    chunks = {}
    for entry in (*asked.recipes, read, Baseline("full"), Baseline("floor"), Baseline("native_window", window=WINDOW)):
        row = make_row(entry, asked, model)
        assert isinstance(row, ModelRow)
        chunks[entry.name] = row.reading(40).chunk
        assert row.reading(15).chunk is None
        check = checked(asked, entry)
        assert check is None or check.equal, check
    assert chunks == {"sliding": 8, "by phase": None, "read": 8, "full": None, "floor": 8, "native_window": None}
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda own, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    row = make_row(asked.recipes[0], asked, model)
    row.request(prompt_of(40), 3)
    assert lengths == [8, 8, 8, 8, 8, 1, 1]


def test_longer_prompts_that_are_cut_are_checked_anew(
    bench: Callable[..., Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_ON_CPU", 8)
    widths: list[int] = []
    request = Checker._logits

    def noted(own: Checker, model: Any, *args: Any) -> Any:
        hook = model.register_forward_pre_hook(
            lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        try:
            return request(own, model, *args)
        finally:
            hook.remove()

    monkeypatch.setattr(Checker, "_logits", noted)
    options = ("prefill_chunk_size=auto", "model.kernel=dense", "check_length=12", "repeats=1")
    run_benchmark(bench(*options, "lengths=[12]"))
    assert 4 not in widths
    result = run_benchmark(bench(*options, "lengths=[12, 40]"))
    found = [check.kernel for check in result.log.checks if check.row == "sliding"]
    assert found == ["dense", "dense, in chunks"]
    assert [check.row for check in result.log.checks].count("by phase") == 1, "it is never cut"
    assert 4 in widths, "the check reads in chunks, too"


def test_chunks_that_are_planned_are_predicted_and_others_are_not(bench: Callable[..., Benchmark]) -> None:
    shape, length = benchmark_shape(bench()), 8192
    fast = dataclasses.replace(CPU_FLOAT32, linear_flops=1e9, chunked_linear_flops=1e12)
    found = {
        size: expectations(bench(f"prefill_chunk_size={size}", f"lengths=[{length}]"), shape, fast)
        for size in ("null", "auto", "512")
    }
    plan = {name: {row: cell.prefill for (row, _), cell in cells.items()} for name, cells in found.items()}
    for row in ("sliding", "floor"):
        assert plan["auto"][row] < plan["null"][row]
        assert plan["512"][row] is None
    assert plan["auto"]["full"] == plan["null"]["full"] == 1


def test_a_machine_is_fitted_to_planned_chunks(bench: Callable[..., Benchmark]) -> None:
    asked = bench("prefill_chunk_size=auto", "lengths=[8192, 5000, 2048]", "baselines=[full, floor]")
    shape = benchmark_shape(asked)
    truth = dataclasses.replace(CPU_FLOAT32, linear_flops=4e9, chunked_linear_flops=2e10)
    runs = []
    for length in asked.lengths:
        for entry in asked.entries:
            policy = getattr(entry, "policy", None)
            chunk = {8192: 2048, 5000: 2500, 2048: None}[length] if entry.name in ("floor", "sliding") else None
            if policy is not None:
                work = prefill_work(policy, shape, length, chunk=chunk)
            elif entry.name == "full":
                work = full_prefill_work(shape, length)
            else:
                work = floor_work(shape, length, chunk)
            runs.append(Run(entry.name, entry.name, length, 0, 0, truth.seconds(work), ()))
    found = fitted_machine(asked, shape, runs, "found")
    assert found is not None
    assert found.chunked_linear_flops == pytest.approx(truth.chunked_linear_flops, rel=0.2)
    assert found.linear_flops == pytest.approx(truth.linear_flops, rel=0.1)


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evicting runs see one key too few."""
    true = bench_rows.apply_policy

    def wrong(model: Any, policy: Any, *, kernel: str = "auto", evict: bool = True) -> Any:
        return true(model, swaa.SlidingWindow(WINDOW - 1) if evict else policy, kernel=kernel, evict=evict)

    monkeypatch.setattr(bench_rows, "apply_policy", wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_key_too_few_is_found(bench: Callable[..., Benchmark], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch)
    asked = bench(f"model.dtype={dtype}", "recipes=[{name: sliding, policy: SlidingWindow(8)}]")
    check = checked(asked, asked.recipes[0])
    assert not check.equal
    assert check.found["float32_difference"] > 0.01
    assert "NOT EQUAL" in str(check)


def test_a_row_that_is_not_equal_is_not_timed(
    bench: Callable[..., Benchmark], quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch)
    asked = bench("lengths=[40]", "repeats=1")
    result = run_benchmark(asked, console=quiet)
    assert not result.sound
    assert set(result.left_out) == {"sliding", "by phase"}
    assert {summary.row for summary in result.summaries} == {"full", "floor"}
    monkeypatch.undo()
    mended = run_benchmark(asked, console=quiet)
    assert mended.sound
    assert mended.left_out == {}


# ---- the whole


def test_a_benchmark_writes_everything(bench: Callable[..., Benchmark], quiet: Console) -> None:
    asked = bench(
        "baselines=[full, floor, {name: native_window, window: 8}, {name: kvpress, kept_keys: 9, num_sinks: 2}]"
    )
    result = run_benchmark(asked, console=quiet)
    assert result.sound
    assert "no kvpress_python is given" in result.left_out["kvpress"]
    names = ["full", "floor", "native_window", "sliding", "by phase"]
    assert [(row.length, row.row) for row in result.summaries] == [
        (length, name) for length in (24, 40) for name in names
    ]
    assert all(row.n == 2 for row in result.summaries)
    sliding = next(row for row in result.summaries if (row.row, row.length) == ("sliding", 40))
    assert sliding.kv_bytes == 2 * LAYERS * KV_HEADS * SIZE * 4 * (WINDOW - 1 + SINKS)
    assert sliding.expected.prefill_pair_share == pytest.approx(
        sum(q - k < WINDOW or k < SINKS for q in range(40) for k in range(q + 1)) / sum(range(1, 41))
    )
    assert sliding.expected.request is not None
    folder = asked.output
    data = json.loads((folder / "bench.json").read_text())
    assert data["machine"]["name"] == f"fitted to {folder / 'bench.json'}"
    assert data["benchmark"]["new_tokens"] == 4
    assert len(data["log"]["runs"]) == 5 * 2 * 2
    assert data["log"]["sessions"][0]["cores"] >= 1
    assert load_benchmark(folder / "bench.yaml") == asked
    for name in ("table.md", "table.csv", "time.png", "speedup.png"):
        assert (folder / name).stat().st_size > 100


def test_repeats_go_round_robin_and_a_rerun_measures_what_is_missing(
    bench: Callable[..., Benchmark], quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_benchmark(bench("lengths=[24]"), console=quiet)
    rows = ["full", "floor", "sliding", "by phase"]
    order = lambda: [(run.row, run.length, run.repeat) for run in runs_of(bench())]  # noqa: E731
    first = [(row, 24, repeat) for repeat in range(2) for row in rows]
    assert order() == first
    run_benchmark(bench("lengths=[24]", "repeats=3"), console=quiet)
    assert order() == [*first, *((row, 24, 2) for row in rows)]
    renamed = bench("lengths=[24]", "repeats=3", "recipes[0].name=window")

    def nothing(benchmark: Benchmark) -> None:
        raise AssertionError("the model is not needed")

    monkeypatch.setattr("swaa.engine.bench.load_model", nothing)
    result = run_benchmark(renamed, console=quiet)
    assert [row.row for row in result.summaries] == ["full", "floor", "window", "by phase"]
    assert all(row.n == 3 for row in result.summaries)


def runs_of(benchmark: Benchmark) -> list[Run]:
    from swaa.report.bench import read_log

    return read_log(benchmark.output / "runs.jsonl").runs


def test_ctrl_c_keeps_what_was_measured(
    bench: Callable[..., Benchmark], quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = bench("lengths=[24]", "repeats=1", "check_length=0")
    true, calls = bench_rows.time_request, itertools.count()

    def stopped(*args: Any) -> Any:
        if next(calls) == 5:  # two of each row: a warm-up and a timed run
            raise StopRequested
        return true(*args)

    monkeypatch.setattr(bench_rows, "time_request", stopped)
    with pytest.raises(Interrupted, match="2 timed requests are kept in .*Run the same command again to go on"):
        run_benchmark(asked, console=quiet)
    assert [run.row for run in runs_of(asked)] == ["full", "floor"]
    monkeypatch.undo()
    run_benchmark(asked, console=quiet)
    assert [run.row for run in runs_of(asked)] == ["full", "floor", "sliding", "by phase"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("new_tokens=5", "new_tokens: 4 there, 5 now"),
        ("model.dtype=bfloat16", "model.dtype: 'float32' there, 'bfloat16' now"),
        ("recipes[0].policy=SlidingWindow(3)", "row 'sliding': Recipe.* there, Recipe.* now"),
        ("prefill_chunk_size=8", "prefill_chunk_size: None there, 8 now"),
    ],
)
def test_a_folder_of_a_different_benchmark_is_refused(
    bench: Callable[..., Benchmark], quiet: Console, override: str, message: str
) -> None:
    small = ("lengths=[24]", "repeats=1", "check_length=0", "baselines=[]")
    run_benchmark(bench(*small), console=quiet)
    with pytest.raises(UserError, match=f"holds timings of a different benchmark:\n  {message}\nChoose another folder"):
        run_benchmark(bench(*small, override), console=quiet)
    run_benchmark(bench(*small, override), fresh=True, console=quiet)
    assert len(runs_of(bench())) == 2


def test_a_policy_that_does_not_fit_is_refused_before_anything_runs(
    bench: Callable[..., Benchmark], quiet: Console
) -> None:
    asked = bench("recipes[1].policy=SlidingWindow(8).on_layers(7)")
    with pytest.raises(UserError, match="recipe 'by phase': layer 7 is out of range: this model has 2 layers"):
        run_benchmark(asked, console=quiet)
    assert runs_of(asked) == []


def test_a_model_in_a_folder_is_timed(bench: Callable[..., Benchmark], quiet: Console, model_folder: Path) -> None:
    asked = bench(f"model={{name: {model_folder}, dtype: bfloat16, device: cpu}}", "lengths=[24]", "repeats=1")
    result = run_benchmark(asked, console=quiet)
    assert result.sound
    assert {check.row for check in result.log.checks} == {"full", "sliding", "by phase"}
    assert len(result.summaries) == 4


def test_a_checkpoint_with_a_policy_is_refused(
    bench: Callable[..., Benchmark], model_folder: Path, tmp_path: Path
) -> None:
    own, tokenizer = swaa.load(model_folder, "SlidingWindow(8)")
    own.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="model.name: .* was saved with an attention policy, which is in force"):
        load_model(bench(f"model={{name: {tmp_path / 'saved'}, device: cpu}}"))


# ---- kvpress, in an environment of its own

FAKE = """#!{python}
import json, sys
told = json.loads(sys.argv[-1])
assert "-I" in sys.argv or sys.argv[1].endswith("kvpress_worker.py")
print(json.dumps({{"versions": {{"kvpress": "0.0"}}}}), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    if ask["new_tokens"] == 13:
        sys.exit(3)
    print(json.dumps({{"prefill_seconds": len(ask["prompt"]), "step_seconds": [0.5] * (ask["new_tokens"] - 1),
                       "kv_bytes": ask["kept_keys"], "rest_bytes": None, "peak_bytes": None}}), flush=True)
"""


def fake_python(path: Path) -> Path:
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


KVPRESS = Baseline("kvpress", kept_keys=9, num_sinks=2)


def test_kvpress_answers_from_its_own_process(bench: Callable[..., Benchmark], model: Any, tmp_path: Path) -> None:
    row = make_row(KVPRESS, bench(f"kvpress_python={fake_python(tmp_path / 'python')}"), model)
    try:
        timing = row.request(prompt_of(30), 3)
        assert (timing.prefill_seconds, timing.step_seconds, timing.kv_bytes) == (30, (0.5, 0.5), 9)
        with pytest.raises(UserError, match="kvpress: its process ended at the request with exit code 3. Look at what"):
            row.request(prompt_of(30), 13)
    finally:
        row.close()


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/no/such/python", "/no/such/python cannot be run \\(No such file or directory\\)"),
        (sys.executable, "lacks a library \\(No module named 'kvpress'\\). Install kvpress there."),
        ("/bin/false", "kvpress: its process ended at the start with exit code 1"),
    ],
)
def test_without_kvpress_the_row_is_left_out(
    bench: Callable[..., Benchmark], model: Any, python: str, message: str
) -> None:
    with pytest.raises(LeftOut, match=message):
        make_row(KVPRESS, bench(f"kvpress_python={python}"), model)


@pytest.mark.skipif("SWAA_KVPRESS_PYTHON" not in os.environ, reason="SWAA_KVPRESS_PYTHON names no interpreter")
def test_the_real_kvpress_keeps_as_many_keys_as_asked(bench: Callable[..., Benchmark], model: Any) -> None:
    row = make_row(KVPRESS, bench(f"kvpress_python={os.environ['SWAA_KVPRESS_PYTHON']}"), model)
    try:
        timing = row.request(prompt_of(40), 3)
    finally:
        row.close()
    assert timing.kv_bytes == 2 * LAYERS * KV_HEADS * SIZE * 4 * 9
    assert len(timing.step_seconds) == 2
