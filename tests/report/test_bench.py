from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from swaa.errors import UserError
from swaa.report.bench import Check, Expected, Log, Run, line_of, read_log, summarise
from swaa.report.bench_plot import write_plots
from swaa.report.bench_table import Result, facts, to_csv, to_json, to_markdown, to_rich

SESSION = {
    "started": "2026-11-22T00:00:00+00:00",
    "cpu": "A CPU",
    "cores": 2,
    "threads": 2,
    "gpu": None,
    "load": 0.5,
    "git": "abc",
    "versions": {"torch": "2.13.0"},
}
ROWS = ("full", "floor", "kvpress", "sliding")


def run(row: str, repeat: int, prefill: float, steps: tuple[float, ...] = (), **more: Any) -> Run:
    return Run(row, f"hash of {row}", more.pop("length", 100), repeat, 0, prefill, steps, **more)


RUNS = [
    run("full", 0, 10.0, (1.0, 1.2, 9.0), rest_bytes=100, peak_bytes=300, kv_bytes=80),
    run("full", 1, 12.0, (1.0, 1.0, 1.0), rest_bytes=150, peak_bytes=310, kv_bytes=80),
    run("full", 2, 11.0, (1.0, 1.0, 1.0), rest_bytes=100, peak_bytes=290, kv_bytes=80),
    run("floor", 0, 1.0, (0.2, 0.2, 0.2)),
    run("sliding", 0, 3.0, (0.5, 0.5, 0.5), kv_bytes=8),
    run("sliding", 1, 2.0, (0.3, 0.3, 0.3), kv_bytes=8),
]
EXPECTED = {("sliding", 100): Expected(0.1, 0.25, 0.3, 0.4, 0.35)}


def test_summaries_are_medians_and_least_ones() -> None:
    full, floor, sliding = summarise(RUNS, ROWS, EXPECTED)
    assert (full.n, full.prefill, full.prefill_min) == (3, 11.0, 10.0)
    assert (full.step, full.step_min) == (1.0, 1.0), "the median step of each run, then of the runs"
    assert (full.request, full.request_min) == (15.0, 14.0)
    assert (full.extra_bytes, full.peak_bytes, full.kv_bytes) == (200, 310, 80)
    assert (full.prefill_ratio, full.step_ratio, full.request_ratio) == (1, 1, 1)
    assert floor.row == "floor"
    assert floor.extra_bytes is None
    assert sliding.prefill_ratio == pytest.approx(2.5 / 11)
    assert sliding.step_ratio == pytest.approx(0.4)
    assert sliding.request_ratio == pytest.approx((4.5 + 2.9) / 2 / 15)
    assert sliding.expected == EXPECTED["sliding", 100]


def test_the_ideal_shrinks_what_attention_costs_beyond_the_floor() -> None:
    sliding = summarise(RUNS, ROWS, EXPECTED)[-1]
    prefill = 1.0 + 0.1 * (11.0 - 1.0)
    steps = 0.6 + 0.25 * (3.0 - 0.6)  # the median of full attention's three sums is 3
    assert sliding.ideal_ratio == pytest.approx((prefill + steps) / (11.0 + 3.0))
    without_floor = [item for item in RUNS if item.row != "floor"]
    assert summarise(without_floor, ROWS, EXPECTED)[-1].ideal_ratio is None


def test_without_full_attention_there_are_no_ratios() -> None:
    (alone,) = summarise([run("sliding", 0, 3.0)], ROWS, {})
    assert (alone.prefill_ratio, alone.request_ratio, alone.step, alone.step_ratio) == (None, None, None, None)
    assert alone.expected == Expected()


def test_lengths_rise_and_rows_keep_their_order() -> None:
    runs = [run("sliding", 0, 1, length=200), run("full", 0, 1, length=200), run("sliding", 0, 1, length=100)]
    found = [(item.length, item.row) for item in summarise(runs, ROWS, {})]
    assert found == [(100, "sliding"), (200, "full"), (200, "sliding")]


CHECK = Check("sliding", "hash of sliding", "blockwise", 64, 6, 6, True, {"float32_difference": 1e-6})


def test_a_log_comes_back_from_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert read_log(path) == Log()
    entries = [SESSION, CHECK, *RUNS]
    path.write_text("".join(line_of(entry) + "\n" for entry in entries))
    assert read_log(path) == Log([SESSION], [CHECK], RUNS)
    path.write_text(line_of(RUNS[0]) + "\n" + line_of(RUNS[1])[:-9])  # torn by an interruption
    assert read_log(path).runs == RUNS[:1]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"kind": "odd"}', '{"kind": "run", "row": 3}'])
def test_another_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(f"{line_of(SESSION)}\n{line}\n")
    with pytest.raises(UserError, match="runs.jsonl:2: this line is no measurement .* begin anew with --fresh."):
        read_log(path)


def test_rows_get_the_names_of_now_and_others_are_dropped() -> None:
    log = Log([SESSION], [CHECK], RUNS).renamed({"hash of sliding": "window"})
    assert [item.row for item in (*log.checks, *log.runs)] == ["window"] * 3
    assert log.check_of("hash of sliding") is log.checks[0]
    assert log.check_of("another") is None


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "title": "a model, bfloat16, 4 new tokens",
        "rows": ROWS,
        "summaries": tuple(summarise(RUNS, ROWS, EXPECTED)),
        "log": Log([SESSION], [CHECK], RUNS),
        "left_out": {"kvpress": "no kvpress_python is given"},
        "predicted_with": "a machine",
    }
    return Result(**{**values, **changes})


def test_markdown_tells_machine_checks_and_what_was_left_out() -> None:
    text = to_markdown(result())
    assert "A CPU, 2 cores, 2 threads, load 0.5 at the start; commit abc; torch 2.13.0" in text
    assert (
        "- sliding: equal to the dense mask on blockwise, 64 tokens: 6 of 6 tokens are the reference's; float32" in text
    )
    assert "- kvpress: left out: no kvpress_python is given" in text
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    sliding = dict(zip(table[0], table[-1], strict=False))
    assert table[-1][0] == "sliding"
    assert sliding["predicted"] == "2.86x"
    assert sliding["off"] == "+42 %", "0.35 predicted, 3.7 s of 15 s measured"
    assert sliding["KV MB"] == "0.00"
    assert sliding["peak MB"] == "-"


def test_csv_has_everything_at_full_precision() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(result()))))
    assert [row["row"] for row in rows] == ["full", "floor", "sliding"]
    assert float(rows[2]["request_ratio"]) == summarise(RUNS, ROWS, EXPECTED)[2].request_ratio
    assert rows[2]["expected_request"] == "0.35"
    assert rows[1]["kv_bytes"] == ""
    assert to_csv(result(summaries=())) == ""


def test_json_has_every_raw_timing() -> None:
    data = json.loads(to_json(result()))
    assert data["log"]["runs"][0]["step_seconds"] == [1.0, 1.2, 9.0]
    assert data["log"]["sessions"] == [SESSION]
    assert data["left_out"] == {"kvpress": "no kvpress_python is given"}


def test_terminal_tables() -> None:
    (table,) = to_rich(result())
    assert table.title == "a model, bfloat16, 4 new tokens, 100 tokens"
    assert table.row_count == 3


def test_a_row_that_is_not_equal_makes_the_result_unsound() -> None:
    wrong = Check("sliding", "hash of sliding", "flex", 64, 6, 2, False, {"dtype_error": 2.0, "dense_dtype_error": 1.0})
    assert result().sound
    unsound = result(log=Log([SESSION], [CHECK, wrong], RUNS))
    assert not unsound.sound
    assert any(
        "NOT EQUAL to the dense mask on flex, 64 tokens: 2 of 6 tokens are the reference's" in line
        for line in facts(unsound)
    )
    assert result(log=Log([SESSION], [wrong, CHECK], RUNS)).sound, "it was mended, and compared again"


@pytest.mark.parametrize("steps", [(), (0.1,)])
def test_plots_are_written(tmp_path: Path, steps: tuple[float, ...]) -> None:
    runs = [run(row, 0, 1.0 + index, steps, length=length) for index, row in enumerate(ROWS) for length in (64, 128)]
    drawn = result(summaries=tuple(summarise(runs, ROWS, EXPECTED)))
    assert write_plots(drawn, tmp_path / "time.png", tmp_path / "speedup.png")
    for name in ("time.png", "speedup.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    without_full = result(summaries=tuple(summarise(runs[2:], ROWS, {})))
    assert write_plots(without_full, tmp_path / "time.png", tmp_path / "speedup.png")
    assert not write_plots(result(summaries=()), tmp_path / "no.png", tmp_path / "no.png")


def test_without_matplotlib_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert not write_plots(result(), tmp_path / "time.png", tmp_path / "speedup.png")
    assert list(tmp_path.iterdir()) == []
