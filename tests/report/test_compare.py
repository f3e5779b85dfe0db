from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest

from report.planted import FULL, TUNED, WINDOW, info, plant, record
from swaa.cli import main
from swaa.errors import UserError
from swaa.report import Record, read_run, to_csv, to_markdown
from swaa.report.compare import Comparison, compare_runs


def grid(*recipes: str, right: dict[str, int], examples: int = 8, **fields: Any) -> list[Record]:
    """The first ``right`` examples of each recipe are right."""
    return [record(recipe, n, float(n < right[recipe]), **fields) for recipe in recipes for n in range(examples)]


def compare(*folders: Path, **options: Any) -> Comparison:
    return compare_runs([read_run(folder) for folder in folders], **options)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return plant(tmp_path / "first", grid(FULL, WINDOW, right={FULL: 8, WINDOW: 1}))


def test_rows_are_recipes_times_runs_against_one_baseline(first: Path, tmp_path: Path) -> None:
    records = grid(WINDOW, TUNED, right={WINDOW: 2, TUNED: 8})
    second = plant(tmp_path / "second", records, recipes=(WINDOW, TUNED))
    found = compare(first, second)
    assert [(row.recipe, row.run) for row in found.rows] == [
        ("FA", "first"),
        ("window 128", "first"),
        ("window 128", "second"),
        ("FA tuned", "second"),
    ]
    assert [row.is_baseline for row in found.rows] == [True, False, False, False]
    differences = [row.paired.difference.value if row.paired else None for row in found.rows]
    assert differences == [None, -7 / 8, -6 / 8, 0.0]
    ps = [row.paired.p for row in found.rows if row.paired]
    assert ps == [2 / 2**7, 2 / 2**6, 1.0]
    assert [row.paired.p_holm for row in found.rows if row.paired] == [3 * 2 / 2**7, 2 * 2 / 2**6, 1.0]
    assert "Baseline: first: FA." in found.facts
    assert (
        "Repeated in first and second: 1 recipe, 7 of 8 samples with the same scores; not all of window 128 7 of 8."
        in found.facts
    )
    markdown = to_markdown(found.rows)
    assert "| run | recipe | n |" in markdown
    assert "| second | window 128 | 8 | 25 [" in markdown
    lines = list(csv.DictReader(io.StringIO(to_csv(found.rows))))
    assert [line["run"] for line in lines] == ["first", "first", "second", "second"]


def test_facts_name_what_differs(first: Path, tmp_path: Path) -> None:
    base = info()
    other = plant(
        tmp_path / "second",
        grid(FULL, WINDOW, right={FULL: 8, WINDOW: 1}),
        seed=1,
        model={**base["model"], "name": "other"},
        provenance={**base["provenance"], "versions": {"torch": "2.14.0", "swaa": "2"}},
        tasks=[{"label": "needle", "name": "needle", "grader": {"name": "exact"}}],
        dropped=[
            {
                "task": "needle",
                "length_limit": 1800,
                "offered": 9,
                "kept": 8,
                "too_long": [{"example": "e9", "tokens": 1900}],
            }
        ],
    )
    facts = "\n".join(compare(first, other).facts)
    assert "first: tiny (float32, cpu), 16 samples, seed 0, git 012345678+, started 2026-01-01T00:00:00." in facts
    assert "Different model: tiny (first) | other (second)." in facts
    assert "Different seed: 0 (first) | 1 (second)." in facts
    assert "Different version of torch: 2.13.0 (first) | 2.14.0 (second)." in facts
    assert "Different version of swaa: None (first) | 2 (second)." in facts
    assert 'Different grader of needle: {"name": "recall"} (first) | {"name": "exact"} (second).' in facts
    assert "  needle: 1 of 9 examples were longer than 1,800 tokens and left out." in facts
    assert "Different git" not in facts


def test_runs_of_different_samples_are_refused_and_the_difference_is_named(first: Path, tmp_path: Path) -> None:
    fewer = plant(tmp_path / "fewer", grid(FULL, WINDOW, right={FULL: 3, WINDOW: 0}, examples=4))
    with pytest.raises(UserError) as refused:
        compare(first, fewer)
    assert str(refused.value).splitlines() == [
        "the runs have different samples, 8 in all:",
        "  fewer lacks 4: needle/900/e4, needle/900/e5, needle/900/e6, …",
        "Complete the runs, or give --common to compare the 4 samples that all rows have.",
    ]
    found = compare(first, fewer, common=True)
    assert {row.n for row in found.rows} == {4}
    told = next(fact for fact in found.facts if fact.startswith("Compared on the 4 samples that all rows have, of 8:"))
    assert "fewer lacks 4" in told
    window = next(row for row in found.rows if (row.recipe, row.run) == ("window 128", "first"))
    assert window.score == 0.25, "of the first four examples, not of all eight"


def test_what_a_single_recipe_lacks_is_named_with_it(first: Path, tmp_path: Path) -> None:
    records = [*grid(FULL, right={FULL: 8}), *grid(WINDOW, right={WINDOW: 1}, examples=7)]
    running = plant(tmp_path / "running", records, status="running", asked=16)
    with pytest.raises(UserError, match=r"  running: window 128 lacks 1 \(the run has not ended\): needle/900/e7"):
        compare(first, running)
    facts = "\n".join(compare(first, running, common=True).facts)
    assert "running has not ended (it runs, or was interrupted): 15 of 16 samples are on record." in facts


def test_a_missing_generation_is_a_missing_sample(tmp_path: Path) -> None:
    both = [*grid(FULL, right={FULL: 8}), *grid(FULL, right={FULL: 4}, generation=1)]
    one = plant(tmp_path / "one", grid(FULL, right={FULL: 8}), recipes=(FULL,))
    two = plant(tmp_path / "two", both, recipes=(FULL,), num_generations=2)
    with pytest.raises(UserError, match="one lacks 8: needle/900/e0#1, "):
        compare(one, two)


def test_a_recipe_without_records_is_left_out_and_told(first: Path, tmp_path: Path) -> None:
    running = plant(tmp_path / "running", grid(FULL, right={FULL: 8}), status="running", asked=16)
    found = compare(first, running)
    assert len(found.rows) == 3
    assert "running: window 128 has no records yet and is left out." in found.facts


def test_the_same_id_with_another_answer_is_another_sample(first: Path, tmp_path: Path) -> None:
    altered = [dataclasses.replace(one, answer=" 77") for one in grid(FULL, WINDOW, right={FULL: 8, WINDOW: 1})]
    other = plant(tmp_path / "other", altered)
    with pytest.raises(UserError, match="needle/900/e0: the answer is ' 0' in first and ' 77' in other, so these are"):
        compare(first, other)


def test_runs_without_a_common_sample_are_refused(first: Path, tmp_path: Path) -> None:
    other = plant(tmp_path / "other", grid(FULL, WINDOW, right={FULL: 8, WINDOW: 1}, length=1800))
    for common in (False, True):
        with pytest.raises(UserError, match="no sample is in all rows, so nothing can be compared:"):
            compare(first, other, common=common)


def test_the_baseline_can_be_named_with_its_run(first: Path, tmp_path: Path) -> None:
    second = plant(tmp_path / "second", grid(FULL, WINDOW, right={FULL: 8, WINDOW: 2}))
    by_name = compare(first, second, baseline="window 128")
    assert "Baseline: first: window 128." in by_name.facts
    by_run = compare(first, second, baseline="second: window 128")
    assert [(row.run, row.recipe) for row in by_run.rows if row.is_baseline] == [("second", "window 128")]
    with pytest.raises(UserError, match="unknown recipe 'windows 128'. Did you mean 'window 128'?"):
        compare(first, second, baseline="windows 128")


def test_without_full_attention_there_is_no_baseline(tmp_path: Path) -> None:
    only = plant(tmp_path / "only", grid(WINDOW, TUNED, right={WINDOW: 1, TUNED: 2}), recipes=(WINDOW, TUNED))
    found = compare(only)
    assert "No baseline: no recipe is full attention without fine-tuning. Name one with --baseline." in found.facts
    assert all(row.paired is None and not row.is_baseline for row in found.rows)


def test_parts_have_their_own_tables_and_add_up(tmp_path: Path) -> None:
    def metadata(example: int) -> dict[str, Any]:
        return {} if example == 7 else {"evidence_distance": 100 if example < 3 else 500}

    records = [
        record(recipe, example, float(recipe == FULL or example < 3), metadata=metadata(example))
        for recipe in (FULL, WINDOW)
        for example in range(8)
    ]
    found = compare(plant(tmp_path / "run", records), by="evidence")
    window = [row for row in found.rows if row.recipe == "window 128"]
    assert [(row.part, row.n, row.score) for row in window] == [
        ("> 0.5 to 1 windows", 3, 1.0),
        ("> 2 to 4 windows", 4, 0.0),
        ("unknown", 1, 0.0),
    ]
    assert [row.paired.difference.value for row in window if row.paired] == [0.0, -1.0, -1.0]
    assert all(row.length is None for row in found.rows)
    assert "### needle, > 2 to 4 windows" in to_markdown(found.rows)
    assert {line["part"] for line in csv.DictReader(io.StringIO(to_csv(found.rows)))} == {row.part for row in window}


def test_the_command_prints_and_writes(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = plant(tmp_path / "second", grid(FULL, WINDOW, right={FULL: 8, WINDOW: 2}))
    for name in ("out/table.md", "out/table.csv"):
        assert main(["compare", str(first), str(second), "-o", str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert "Baseline: first: FA." in printed
    assert "difference %" in printed
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.startswith("- first: tiny (float32, cpu), 16 samples")
    assert "### needle, 900 tokens" in text
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 5
    assert main(["compare", str(first), "--by", "length", "--edges", "500,1000"]) == 0
    assert "needle, > 500 to 1,000 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder. Name the folder that `swaa run` wrote."),
        (["TMP"], "this folder holds no run: it has no run.json"),
        (["FIRST", "TMP/../FIRSTNAME"], "this run is given twice. Give each run once."),
        (["EMPTY"], "this run has no records yet. Wait for its first samples, or leave it out."),
        (["FIRST", "--by", "depht"], "by: unknown value 'depht'. Did you mean 'depth'?"),
        (["FIRST", "--edges", "5"], "edges: expected none, unless by is 'length', got [5]"),
        (["FIRST", "--by", "length", "--edges", "5,x"], "--edges: expected whole numbers, got '5,x'"),
        (["FIRST", "--baseline", "FAA"], "unknown recipe 'FAA'. Did you mean 'FA'?"),
        (["FIRST", "-o", "TMP/../FIRSTNAME/run.json/x.md"], "--output: expected a file that can be written"),
        (["FIRST", "-o", "table.txt"], "--output: expected a file ending in .csv or .md, got 'table.txt'. Rename it."),
    ],
)
def test_a_mistake_is_one_message(
    argv: list[str], message: str, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = plant(tmp_path / "empty", [], status="running", asked=4)
    places = {
        "TMP": str(tmp_path),
        "FIRST": str(first),
        "TMP/../FIRSTNAME": f"{tmp_path}/../{tmp_path.name}/first",
        "EMPTY": str(empty),
        "TMP/../FIRSTNAME/run.json/x.md": f"{first}/run.json/x.md",
    }
    assert main(["compare", *(places.get(arg, arg) for arg in argv)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("swaa: error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_two_runs_of_one_folder_name_go_by_their_paths(first: Path, tmp_path: Path) -> None:
    twin = plant(tmp_path / "other" / "first", grid(FULL, WINDOW, right={FULL: 8, WINDOW: 1}))
    found = compare(first, twin)
    assert {row.run for row in found.rows} == {str(first), str(twin)}
    assert any(
        re.search("Repeated in .*: 2 recipes, 16 of 16 samples with the same scores.", fact) for fact in found.facts
    )
