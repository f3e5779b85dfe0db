"""The winners, timed: planted timings against loops, and a tiny model's against what its records say."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from engine.conftest import make_model
from swaa.cli import main
from swaa.config import Search, load_search
from swaa.engine import Interrupted
from swaa.engine.bench_folder import BenchFolder
from swaa.hf import apply_policy, held_bytes
from swaa.policies import FullAttention, SlidingWindow, parse_policy
from swaa.report import bench_table
from swaa.report.bench import Log, Run, summarise
from swaa.search import measure as measuring
from swaa.search import outcome as outcomes
from swaa.search.budget import Costs
from swaa.search.card_measured import is_far, measured
from swaa.search.halving import FULL, Scored
from swaa.search.measure import Measurement, Timed, benchmark_of, summary
from swaa.search.outcome import Outcome, Winner
from swaa.search.run import run_search
from swaa.search.space import Base, Candidate

few = settings(max_examples=settings.default.max_examples // 10)
seconds = st.floats(0.01, 100)
HERE = {"cpu": "a CPU", "threads": 2, "gpu": None, "load": 0.5}


def search_of(**changes: Any) -> Search:
    values: dict[str, Any] = {
        "calibration": {"tasks": [{"name": "needle_single"}], "length": 400},
        "space": {"windows": [16], "counts": [0, 2]},
        "scorers": ["add_one"],
        "test": {"tasks": [{"name": "needle_single"}], "lengths": [300, 440]},
    }
    return Search.from_dict(values | changes, output="out")


# ---- what is asked of the benchmark, and read off it


def test_the_benchmark_is_of_the_request_on_the_searchs_model() -> None:
    model = {"name": "m", "dtype": "bfloat16", "device": "cpu", "kernel": "dense", "prefill_chunk_size": 64}
    asked = search_of(model=model, request={"new_tokens": 5}, measure={"rounds": 4, "check_length": 0})
    bench = benchmark_of(asked, {"one": SlidingWindow(16), "two": SlidingWindow(8)})
    assert [(entry.name, getattr(entry, "policy", None)) for entry in bench.entries] == [
        ("full", None),
        ("one", SlidingWindow(16)),
        ("two", SlidingWindow(8)),
    ]
    assert (bench.lengths, bench.new_tokens, bench.repeats, bench.check_length) == ((440,), 5, 4, 0)
    assert (bench.model.name, bench.model.dtype, bench.model.device, bench.model.kernel) == tuple(model.values())[:4]
    assert bench.prefill_chunk_size == 64
    assert bench.output == Path("out/bench")
    assert benchmark_of(search_of(request={"length": 900}), {"one": SlidingWindow(16)}).lengths == (900,)


@pytest.mark.parametrize(
    ("windows", "sinks", "length", "expected"),
    [([16, 128], [10, 4], 870, 266), ([16], [4], 100, 100), ([512], [10], 4000, 640), ([16], [0], 4000, 144)],
)
def test_the_check_is_as_short_as_its_windows_let_it_be(
    windows: list[int], sinks: list[int], length: int, expected: int
) -> None:
    space = {"windows": windows, "sinks": sinks, "counts": [0]}
    asked = search_of(space=space, request={"length": length})
    assert benchmark_of(asked, {"one": SlidingWindow(16)}).check_length == expected


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@few
@given(st.lists(st.tuples(*[seconds] * 4), min_size=1, max_size=5))
def test_ratios_are_of_the_same_round(rounds: list[tuple[float, ...]]) -> None:
    asked = search_of(measure={"rounds": len(rounds)}, request={"new_tokens": 3})
    bench = benchmark_of(asked, {"one": SlidingWindow(16), "lost": SlidingWindow(8)})
    runs = []
    for number, (full, step, own, own_step) in enumerate(rounds):
        runs.append(Run("full", "f", 440, number, 0, full, (step, step), kv_bytes=200))
        runs.append(Run("one", "o", 440, number, 0, own, (own_step, own_step), kv_bytes=50))
    result = bench_table.Result("", ("full", "one"), tuple(summarise(runs, ("full", "one"), {})), Log([HERE], [], runs))
    found = summary(bench, dataclasses.replace(result, left_out={"lost": "no reason"}))
    (timed,) = found.timed
    ratios = [(own + 2 * own_step) / (full + 2 * step) for full, step, own, own_step in rounds]
    assert timed.ratios == pytest.approx(ratios)
    assert timed.time_ratio == pytest.approx(middle(ratios))
    assert timed.ends == pytest.approx((min(ratios), max(ratios)))
    assert timed.kv_share == 0.25
    assert found.full_seconds == pytest.approx(middle([full + 2 * step for full, step, _, _ in rounds]))
    assert (found.of("one"), found.of("lost")) == (timed, None)
    assert found.left_out == {"lost": "no reason"}
    assert found.machine == "a CPU, 2 threads, load 0.5 at the start"


def test_nothing_is_timed_beside_a_full_attention_that_does_not_run() -> None:
    bench = benchmark_of(search_of(), {"one": SlidingWindow(16)})
    runs = [Run("one", "o", 440, 0, 0, 1.0, ())]
    log = Log([{**HERE, "threads": 1, "load": None}], [], runs)
    result = bench_table.Result("", ("one",), tuple(summarise(runs, ("one",), {})), log, {"full": "no memory."})
    found = summary(bench, result)
    assert (found.timed, found.full_seconds) == ((), None)
    assert found.machine == "a CPU, 1 thread"


# ---- what the card says


def outcome(measurement: Measurement | None, *costs: Costs, speedup: float | None = None) -> Outcome:
    """Full attention and a winner for each of the costs."""
    none: Any = None

    def tested(name: str, scored: Scored | None, cost: Costs) -> outcomes.Tested:
        return outcomes.Tested(name, "chosen" if scored else FULL, scored, cost, True, none, none, none, none)

    rows = [tested(FULL, None, Costs(4, 1, 1))]
    for number, cost in enumerate(costs):
        rows.append(tested(f"r{number}", Scored(Candidate(Base(16, 4, "both"), (number,), ("x",), 4, 4), cost), cost))
    won = [row.name for row in rows[1:]] or [FULL]
    winners = [Winner("what?", name, None, speedup) for name in [*won, *won]] + [Winner("nothing?", None)]
    return Outcome(tuple(rows), (), tuple(winners), "score", 1, measurement)


def measurement(**ratios: tuple[float, ...]) -> Measurement:
    timed = tuple(Timed(name, values, 0.5) for name, values in ratios.items())
    return Measurement(timed, {}, "a CPU, 2 threads", 1440, 5, 3, 1.25)


def told(found: Outcome, **changes: Any) -> str:
    return "\n".join(measured(search_of(**changes), found, "a profile"))


def test_predicted_and_measured_stand_beside_each_other() -> None:
    text = told(outcome(measurement(r0=(0.6, 0.5, 0.7)), Costs(1, 0.55, 0.4)))
    assert "| r0 | 0.550 | 0.600 [0.500, 0.700] | 0.400 | 0.500 |" in text
    assert (
        "the median of 3 rounds, with the least and the largest; requests of 1,440 prompt tokens and 5 new ones" in text
    )
    assert "(1.25 s without a policy), one at a time, on: a CPU, 2 threads." in text
    assert "differ" not in text


def test_the_card_says_where_predictions_are_far_off() -> None:
    both = outcome(measurement(r0=(0.71,), r1=(0.65,)), Costs(1, 0.5, 0.5), Costs(2, 0.55, 0.35))
    text = told(both)
    assert "Predicted and measured time differ by more than 30 %: r0. The prediction's profile (a profile)" in text
    assert "Predicted and measured KV differ by more than 30 %: r1." in text


@few
@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_far_is_far_in_both_directions(one: float, other: float) -> None:
    assert is_far(one, other) == is_far(other, one) == (one / other > 1.3 or other / one > 1.3)


def test_a_winner_that_is_not_as_fast_as_was_asked_is_told() -> None:
    costs = Costs(1, 0.5, 0.5)
    text = told(outcome(measurement(r0=(0.625,)), costs, speedup=2.0))
    assert "r0 was to be at least 2 times faster than the model without a policy, by prediction" in text
    assert "as measured it is 1.60 times as fast." in text
    assert "as measured it is" not in told(outcome(measurement(r0=(0.5,)), costs, speedup=2.0))


def test_the_card_says_why_nothing_was_measured() -> None:
    nobody = outcome(None)
    assert nobody.to_measure == {}
    assert told(nobody) == "Nothing was measured: no recipe but full attention itself has won."
    some = outcome(None, Costs(1, 0.5, 0.5))
    assert list(some.to_measure) == ["r0"], "once, though it has won twice"
    assert told(some, measure=None) == "Nothing was measured: `measure` is null."
    assert told(some) == "Nothing was measured yet: the search was interrupted. The same command goes on."
    nothing = Measurement((), {"full": "no memory.", "r0": "no"}, "a CPU", 1440, 5, 3, None)
    assert told(outcome(nothing, Costs(1, 0.5, 0.5))).splitlines() == [
        "full attention could not be measured: no memory.",
        "r0 could not be measured: no.",
    ]


# ---- on a tiny model


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "bench" / "runs.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "search.json").read_text())["outcome"]
    return found


def won(folder: Path) -> list[str]:
    return list(dict.fromkeys(winner["name"] for winner in result_of(folder)["winners"] if winner["name"]))


def check_measured(folder: Path, rounds: int = 3) -> None:
    """The winners are timed, all in one session and in turn with full attention, and the result is what was timed."""
    found, winners = result_of(folder), won(folder)
    runs = records(folder, "run")
    assert [(run["repeat"], run["row"]) for run in runs] == [
        (repeat, row) for repeat in range(rounds) for row in ("full", *winners)
    ]
    assert {(run["length"], run["session"]) for run in runs} == {(400, 0)}
    assert len(records(folder, "session")) == 1
    assert [timed["name"] for timed in found["measurement"]["timed"]] == winners
    whole = {run["repeat"]: run for run in runs if run["row"] == "full"}
    rows = {row["recipe"]: row for row in csv.DictReader((folder / "front.csv").open())}
    for timed in found["measurement"]["timed"]:
        mine = [run for run in runs if run["row"] == timed["name"]]
        took: Callable[[dict[str, Any]], float] = lambda run: run["prefill_seconds"] + sum(run["step_seconds"])  # noqa: E731
        ratios = [took(run) / took(whole[run["repeat"]]) for run in mine]
        assert timed["ratios"] == pytest.approx(ratios)
        row = rows[timed["name"]]
        assert float(row["bench_time_ratio"]) == pytest.approx(middle(ratios))
        assert (float(row["bench_time_low"]), float(row["bench_time_high"])) == pytest.approx(
            (min(ratios), max(ratios))
        )
        assert float(row["bench_kv_share"]) == pytest.approx(mine[0]["kv_bytes"] / whole[0]["kv_bytes"])
        assert (
            f"| {timed['name']} | {float(row['time_ratio']):.3f} | {middle(ratios):.3f} ["
            in (folder / "card.md").read_text()
        )
    assert {name for name, row in rows.items() if row["bench_time_ratio"]} == set(winners)


def test_the_winners_are_measured(done: Path) -> None:
    check_measured(done)
    sessions = records(done, "session")
    assert f"one at a time, on: {sessions[0]['cpu']}, {sessions[0]['threads']} thread" in (done / "card.md").read_text()
    assert all(check["equal"] for check in records(done, "check"))
    assert len(records(done, "check")) == 1 + len(won(done))


def test_the_kept_keys_are_those_of_the_cache(done: Path) -> None:
    """An oracle: a prefill under the policy, and one without, and what their caches hold."""
    import torch

    model = make_model()
    ids = torch.ones(1, 400, dtype=torch.long)
    with torch.no_grad():
        whole = held_bytes(model(ids).past_key_values)
    found = result_of(done)
    for timed in found["measurement"]["timed"]:
        row = next(row for row in found["tested"] if row["name"] == timed["name"])
        with torch.no_grad(), apply_policy(model, parse_policy(row["policy"])):
            held = held_bytes(model(ids, prompt_lengths=torch.tensor([400])).past_key_values)
        assert timed["kv_share"] == pytest.approx(held / whole)
        assert timed["kv_share"] == pytest.approx(row["costs"]["kv_share"])


def test_several_winners_take_turns(file: Path, tmp_path: Path) -> None:
    policies = {"one": SlidingWindow(16), "two": SlidingWindow(8)}
    found = measuring.measure(load_search(file, output=tmp_path), policies, Console(quiet=True))
    order = [(run["repeat"], run["row"]) for run in records(tmp_path, "run")]
    assert order == [(repeat, row) for repeat in range(3) for row in ("full", "one", "two")]
    assert [(timed.name, len(timed.ratios)) for timed in found.timed] == [("one", 3), ("two", 3)]
    assert [timed.kv_share for timed in found.timed] == [15 / 400, 7 / 400]
    fewer = measuring.measure(load_search(file, output=tmp_path), {"two": SlidingWindow(8)}, Console(quiet=True))
    assert {run["row"] for run in records(tmp_path, "run")} == {"full", "two"}, (
        "beside a full attention of its own time"
    )
    assert len(records(tmp_path, "session")) == 1
    assert [timed.name for timed in fewer.timed] == ["two"]


def test_full_attentions_own_ratio_is_one(done: Path) -> None:
    row = next(csv.DictReader((done / "front.csv").open()))
    assert (row["recipe"], row["time_ratio"], row["kv_share"]) == (FULL, "1.0", "1.0")
    assert result_of(done)["tested"][0]["costs"] == {"full_layers": 4, "time_ratio": 1.0, "kv_share": 1.0}


def test_other_rounds_are_measured_anew_and_null_measures_nothing(
    file: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done, mine := tmp_path / "mine")
    before = (mine / "bench" / "runs.jsonl").read_bytes()
    assert main(["search", str(file), "-o", str(mine), "measure.check_length=0", "measure.rounds=1"]) == 0
    check_measured(mine, rounds=1)
    assert records(mine, "check") == []
    assert (mine / "bench" / "runs.jsonl").read_bytes() != before
    ratio = result_of(mine)["measurement"]["timed"][0]["time_ratio"]
    assert f"(measured: {ratio:.2f}), KV " in capsys.readouterr().out

    def nothing(*args: object, **options: object) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(measuring, "run_benchmark", nothing)
    assert main(["search", str(file), "-o", str(mine), "measure=null"]) == 0
    assert result_of(mine)["measurement"] is None
    assert "Nothing was measured: `measure` is null." in (mine / "card.md").read_text()
    assert "(measured" not in capsys.readouterr().out


def test_an_interrupted_measurement_is_made_anew_in_one_session(
    file: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done, mine := tmp_path / "mine")
    shutil.rmtree(mine / "bench")
    search = load_search(file, ["measure.check_length=0"], output=mine)
    append = BenchFolder.append

    def interrupted(folder: BenchFolder, entry: Any) -> None:
        append(folder, entry)
        if isinstance(entry, Run):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(BenchFolder, "append", interrupted)
        with pytest.raises(Interrupted, match="Interrupted; what was measured is kept in"):
            run_search(search)
    assert len(records(mine, "run")) == 1
    card = (mine / "card.md").read_text()
    assert "Nothing was measured yet: the search was interrupted." in card
    assert "## How each was chosen" in card
    run_search(search)
    check_measured(mine)


def test_a_winner_that_differs_from_its_policy_is_not_timed(
    file: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swaa.engine import bench_rows

    shutil.copytree(done, mine := tmp_path / "mine")
    shutil.rmtree(mine / "bench")
    true = bench_rows.apply_policy

    def wrong(model: Any, policy: Any, *, kernel: str = "auto", evict: bool = True) -> Any:
        return true(model, FullAttention() if evict else policy, kernel=kernel, evict=evict)

    monkeypatch.setattr(bench_rows, "apply_policy", wrong)
    name = won(done)[0]
    run_search(load_search(file, output=mine))
    assert result_of(mine)["measurement"]["timed"] == []
    assert f"{name} could not be measured: it is not equal to the dense mask." in (mine / "card.md").read_text()
    monkeypatch.undo()
    run_search(load_search(file, output=mine))
    check_measured(mine)
