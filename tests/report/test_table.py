from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from swaa.report import NOTE, Record, Row, summarise, to_csv, to_markdown, to_rich
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
