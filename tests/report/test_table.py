from __future__ import annotations

import csv
import io
import math

import pytest
from rich.console import Console

from report.planted import FULL, TUNED, WINDOW
from report.planted import record as planted
from swaa.report import NOTE, Record, Row, note, summarise, to_csv, to_markdown, to_rich, wilson
from swaa.report.paired import mcnemar_p, tango
from swaa.report.runs import Stretch
from swaa.report.stats import bootstrap
from swaa.report.table import COLUMNS


def record(recipe: str, example: int, right: bool, *, length: int = 900, task: str = "needle") -> Record:
    return Record(
        recipe=recipe,
        recipe_hash=recipe * 4,
        task=task,
        length=length,
        example=f"e{example}",
        seed=0,
        prompt_tokens=length,
        answer=" 1",
        generated=" 1",
        scores={
            "score": 0.5 + right / 2,
            "all_correct": float(right),
            "forced_exact": 0.0,
            "forced_nll": 2.0 + example,
        },
        timing={"prefill_seconds": 0.5, "decode_ms_per_token": 40.0 + example, "batch_size": 2},
        cost={"visible_pair_share": 0.25, "kv_share": 1.0},
    )


RECORDS = [
    *(record("a|b", index, index < 3) for index in range(4)),
    *(record("c", index, False) for index in range(4)),
    record("c", 0, True, length=1800),
]


def test_rows_are_the_cells_in_the_order_of_the_records() -> None:
    rows = summarise(RECORDS)
    assert [(row.recipe, row.length, row.n) for row in rows] == [
        ("a|b", 900, 4),
        ("c", 900, 4),
        ("c", 1800, 1),
    ]
    first = rows[0]
    assert first.accuracy is not None
    assert first.forced is not None
    assert (first.accuracy.value, first.accuracy.n) == (0.75, 4)
    assert first.score == 0.875
    assert first.forced.value == 0
    assert (first.nll, first.decode_ms, first.prefill_seconds) == (3.5, 41.5, 0.5)
    assert (first.visible_pair_share, first.kv_share) == (0.25, 1.0)


def test_markdown_holds_every_cell_and_says_what_it_means() -> None:
    text = to_markdown(summarise(RECORDS))
    assert "### needle, 900 tokens" in text
    assert "### needle, 1800 tokens" in text
    assert r"| a\|b | 4 | 75 [30,95] | 88 [50,100] | 0 [0,49] | 3.50 | 0.50 | 42 | 25 | 100 |" in text
    assert NOTE in text
    widths = {line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_csv_has_full_precision_and_both_ends_of_intervals() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(summarise(RECORDS)))))
    assert [line["recipe"] for line in lines] == ["a|b", "c", "c"]
    assert float(lines[0]["accuracy"]) == 0.75
    assert float(lines[0]["accuracy_low"]) == pytest.approx(0.30064, abs=1e-5)
    assert float(lines[0]["accuracy_high"]) == pytest.approx(0.95441, abs=1e-5)
    assert float(lines[0]["decode_ms_per_token"]) == 41.5


def test_what_was_not_measured_is_no_number() -> None:
    bare = Record("a", "h", "needle", 900, "e0", 0, 900, " 1")
    row = summarise([bare])[0]
    assert row == Row("a", "needle", 900, 1, None, None, None, None, None, None, None, None)
    assert "| a | 1 | - | - | - | - | - | - | - | - |" in to_markdown([row])
    line = next(csv.DictReader(io.StringIO(to_csv([row]))))
    assert line["accuracy"] == line["nll"] == line["kv_share"] == ""


@pytest.mark.parametrize("width", [80, 140])
def test_a_table_fits_a_terminal_and_loses_nothing(width: int) -> None:
    name = "sink 10 + FA decode + 1/2 FA layers"
    tables = to_rich(summarise([record(name, 0, True), *RECORDS]))
    console = Console(width=width, file=io.StringIO())
    for table in tables:
        console.print(table)
    text = console.file.getvalue()
    assert len(tables) == 2
    assert "needle, 900 tokens" in text
    assert "75 [30,95]" in text
    assert "100 [21,100]" in text
    assert "\u2026" not in text, "an ellipsis hides something"
    assert max(map(len, text.splitlines())) <= width
    first_column = " ".join(line[: 17 if width == 80 else 40].split("  ")[0].strip() for line in text.splitlines())
    assert all(word in first_column for word in name.split())
    assert all(word in text for column in COLUMNS for word in column.title.split())


def test_no_records_make_no_table() -> None:
    assert summarise([]) == []
    assert to_csv([]) == ""


def cells(markdown: str, recipe: str) -> dict[str, str]:
    """The row of a recipe in the first table, by the columns' titles."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    row = next(line for line in lines if line[0] == recipe)
    return dict(zip(lines[0], row, strict=True))


def row_of(rows: list[Row], recipe: str) -> Row:
    return next(row for row in rows if row.recipe == recipe)


def test_differences_are_to_the_baseline_on_the_same_examples() -> None:
    right = {FULL: range(10), WINDOW: range(2), TUNED: range(10)}
    records = [
        planted(recipe, example, float(example in right[recipe])) for recipe in right for example in reversed(range(12))
    ]
    rows = summarise(records, baseline=FULL)
    full, window, tuned = (row_of(rows, name) for name in ("FA", "window 128", "FA tuned"))
    assert full.is_baseline
    assert full.paired is None
    assert window.paired is not None
    assert window.paired.difference == tango(0, 8, 12)
    assert window.paired.p == pytest.approx(2 / 2**8) == mcnemar_p(0, 8)
    assert window.paired.p_holm == pytest.approx(2 * 2 / 2**8), "two comparisons"
    assert tuned.paired is not None
    assert (tuned.paired.p, tuned.paired.p_holm) == (1.0, 1.0)
    text = to_markdown(rows)
    assert cells(text, "FA")["difference %"] == "baseline"
    low, high = window.paired.difference.low, window.paired.difference.high
    assert low is not None
    assert high is not None
    assert cells(text, "window 128")["difference %"] == f"-67 [{100 * low:+.0f},{100 * high:+.0f}]"
    assert (cells(text, "window 128")["p"], cells(text, "window 128")["p Holm"]) == ("0.008", "0.016")
    assert cells(text, "FA tuned")["difference %"] == "0 [-24,+24]"
    assert "difference: to the baseline" in text
    line = list(csv.DictReader(io.StringIO(to_csv(rows))))[1]
    assert (line["metric"], line["pairs"], line["unpaired"]) == ("score", "12", "0")
    assert float(line["p"]) == pytest.approx(2 / 2**8)


def test_without_generation_differences_are_of_forced_answers() -> None:
    def forced(recipe: str, example: int, right: bool) -> Record:
        return planted(recipe, example, None, scores={"forced_exact": float(right), "forced_nll": 1.0})

    records = [forced(recipe, example, recipe == FULL) for recipe in (FULL, WINDOW) for example in range(6)]
    window = row_of(summarise(records, baseline=FULL), "window 128")
    assert window.metric == "forced"
    assert window.paired is not None
    assert window.paired.difference.value == -1.0


def test_errors_and_unparsed_verdicts_are_counted_and_are_no_zeros() -> None:
    records = [
        planted(WINDOW, 0, 1.0, verdict="correct"),
        planted(WINDOW, 1, 0.0, verdict="wrong"),
        planted(WINDOW, 2, None, error="the judge did not answer"),
        planted(WINDOW, 3, None, verdict="unparsed"),
        planted(WINDOW, 4, None, error="half an answer", verdict="unparsed"),
        *(planted(FULL, example, 1.0) for example in range(5)),
    ]
    rows = summarise(records, baseline=FULL)
    window = row_of(rows, "window 128")
    assert (window.n, window.graded, window.errors, window.unparsed) == (5, 2, 2, 1)
    assert window.accuracy == wilson(1, 2)
    assert window.paired is not None
    assert (window.paired.difference.n, window.paired.unpaired) == (2, 3)
    text = to_markdown(rows)
    assert [cells(text, "window 128")[name] for name in ("n", "graded", "errors", "unparsed")] == ["5", "2", "2", "1"]
    assert [cells(text, "FA")[name] for name in ("n", "graded", "errors", "unparsed")] == ["5", "5", "0", "0"]
    assert "Neither counts as wrong" in text


def test_answers_to_one_example_belong_together() -> None:
    outcomes = {0: [1.0, 1.0, 0.0, 0.0], 1: [0.0] * 4, 2: [1.0] * 4, 3: [0.0, 0.0, 0.0, 1.0]}
    records = [
        planted(WINDOW, example, score, generation=number, timing={"new_tokens": 10 * (example + 1)})
        for example, scores in outcomes.items()
        for number, score in enumerate(scores)
    ]
    (row,) = summarise(records)
    assert (row.n, row.answers) == (4, 16)
    means = [0.5, 0.0, 1.0, 0.25]
    assert row.accuracy == bootstrap(means), "not 7 of 16 trials"
    assert row.new_tokens == bootstrap([10.0, 20.0, 30.0, 40.0])
    passes = dict(row.passes)
    assert passes.keys() == {2, 4}
    assert passes[2].value == pytest.approx((5 / 6 + 0 + 1 + 3 / 6) / 4)
    assert passes[4].value == 0.75
    text = to_markdown([row])
    assert cells(text, "window 128")["answers"] == "16"
    assert cells(text, "window 128")["pass@4 %"].startswith("75 [")
    assert cells(text, "window 128")["new tokens"].startswith("25 [")
    assert "pass@k" in text
    assert float(next(csv.DictReader(io.StringIO(to_csv([row]))))["pass_at_4"]) == 0.75


def test_truncated_answers_are_a_share() -> None:
    records = [planted(WINDOW, example, 0.0, scores={"truncated": float(example < 3)}) for example in range(12)]
    (row,) = summarise(records)
    assert row.truncated == wilson(3, 12)
    assert cells(to_markdown([row]), "window 128")["cut %"] == "25 [9,53]"


def test_long_text_has_its_columns_where_it_was_read() -> None:
    def stretch(number: int, delta: float, long: float | None, keys: int) -> Stretch:
        return Stretch("window 128", WINDOW, number, 3.0, delta, long, keys, 100)

    stretches = [stretch(0, 0.1, 1.0, 30), stretch(1, 0.3, 2.0, 10), stretch(2, 0.2, None, 0)]
    records = [planted(recipe, 0, 1.0) for recipe in (FULL, WINDOW)]
    rows = summarise(records, stretches=stretches)
    window = row_of(rows, "window 128")
    assert window.delta_nll == bootstrap([0.1, 0.3, 0.2], [100, 100, 100])
    assert window.long_ppl is not None
    assert window.long_ppl.value == pytest.approx(math.exp((30 * 1.0 + 10 * 2.0) / 40)), "every key token counts alike"
    assert window.long_ppl.low is not None
    assert window.long_ppl.high is not None
    assert math.exp(1) <= window.long_ppl.low <= window.long_ppl.value <= window.long_ppl.high <= math.exp(2)
    assert row_of(rows, "FA").delta_nll is None
    text = to_markdown(rows)
    assert cells(text, "window 128")["delta-NLL"].startswith("0.200 [")
    assert (cells(text, "FA")["delta-NLL"], cells(text, "FA")["LongPPL"]) == ("-", "-")


@pytest.mark.parametrize("nats", [[709.0, 711.0], [2000.0, 3000.0], [math.inf, math.inf]])
def test_a_perplexity_that_no_float_holds_is_infinite(nats: list[float]) -> None:
    stretches = [Stretch("FA", FULL, number, 3.0, 0.1, value, 10, 100) for number, value in enumerate(nats)]
    rows = summarise([planted(FULL, 0, 1.0)], stretches=stretches)
    (row,) = rows
    assert row.long_ppl is not None
    assert row.long_ppl.high is None or not row.long_ppl.high < math.inf
    assert "inf" in cells(to_markdown(rows), "FA")["LongPPL"] or nats[0] < 710
    assert to_csv(rows)


def test_columns_that_nothing_fills_are_left_out() -> None:
    rows = summarise(RECORDS)
    header = to_markdown(rows).splitlines()[2]
    assert header == "| " + " | ".join(column.title for column in COLUMNS) + " |"
    assert note(rows) == NOTE
    names = to_csv(rows).splitlines()[0].split(",")
    assert names[:4] == ["task", "length", "recipe", "n"]
    assert names[16:] == ["score_low", "score_high", "nll_low", "nll_high"]


def test_what_more_there_is_is_a_second_table_in_a_terminal() -> None:
    records = [
        planted(recipe, example, float(recipe == FULL), timing={"new_tokens": 5.0 + example})
        for recipe in (FULL, WINDOW)
        for example in range(8)
    ]
    tables = to_rich(summarise(records, baseline=FULL))
    assert [table.title for table in tables] == [
        "needle, 900 tokens",
        "needle, 900 tokens (continued)",
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(tables[1])
    text = console.file.getvalue()
    assert "-100 [-100,-35]" in text
    assert "baseline" in text
    assert "\u2026" not in text
