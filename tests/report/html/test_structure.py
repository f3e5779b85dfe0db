"""The page as a tree: everything is there, everything is escaped, and figures are those of the records."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report.html.folders import EVIL, WINDOW, Folder, Row, paper_rows
from swaa.cli import main
from swaa.errors import UserError
from swaa.report.html import make_report, write_report
from swaa.report.html.figures import Group, request_seconds
from swaa.report.html.files import standalone
from swaa.report.html.heat import heat_svg
from swaa.report.html.labels import Box, place
from swaa.report.html.markup import Markup, element, embed, readable
from swaa.report.html.page import render
from swaa.report.html.plot import nice_ticks, pareto_svg
from swaa.report.html.report import Report
from swaa.report.html.samples import LIMITS, browser_data, prompt_pieces
from swaa.report.runs import Sample, read_run

VOID = {"meta", "br", "wbr", "input"}


class Page(HTMLParser):
    """What a page is made of: elements with their attributes and path, and their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.data = ""
        self.open: list[str] = []
        self._in_data = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values, ""))
        self._in_data = values.get("id") == "data"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> does not close what is open: {self.open[-3:]}"
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data
        if self.elements:
            tag, values, text = self.elements[-1]
            self.elements[-1] = (tag, values, text + data)

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (values, text)
            for name, values, text in self.elements
            if name == tag and all(values.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]


def report_of(tmp_path: Path, *folders: Folder, names: str = "abc") -> Report:
    runs = [read_run(folder.write(tmp_path / name)) for folder, name in zip(folders, names, strict=False)]
    return make_report(runs, {})


def test_a_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    page = Page(text := render(report_of(tmp_path, Folder(rows=paper_rows(), perplexity=True))))
    assert page.open == []
    assert text.count("<script") == 2  # the data and the page's own
    for _, values, _ in page.elements:
        assert not (values.keys() & {"src", "onclick", "onload", "srcset", "action"})
        assert str(values.get("href", "#")).startswith("#")
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))
    assert {"plot", "recipes", "depths", "samples", "provenance", "notes"} <= set(ids)
    rows = page.all("tr")
    assert len(page.all("g", role="img")) == 2 * 34  # wide and narrow
    assert len(rows) == 2 * (1 + 34)  # the table, and the recipes in full
    assert len(page.all("svg", class_="heat")) == 34


def test_nothing_of_a_text_becomes_markup(tmp_path: Path) -> None:
    rows = [
        dataclasses.replace(row, name=f"{row.name} {EVIL}", policy=f"Unknown('{EVIL}')") for row in paper_rows()[:2]
    ]
    folder = Folder(rows=rows, tasks=(f"task {EVIL}",), evil=True, judge=True, examples=60)
    report = dataclasses.replace(report_of(tmp_path, folder), notices=(EVIL,))
    page = Page(text := render(report))
    assert page.open == []
    assert text.count("<script") == text.count("</script>") == 2
    assert "<b>&amp;é" not in text
    assert "\x07" not in text
    data = json.loads(page.data)
    visible = EVIL.replace("\x07", "\ufffd")
    assert data["prompts"][0]["answer"].endswith(EVIL)
    assert data["tasks"] == [f"task {EVIL}"]
    assert visible in {text for values, text in page.all("li")}
    assert any(EVIL in str(record[5].get("error", "")) for record in data["records"])


@given(text=st.text(st.sampled_from("<>/&;\"'!- a\x07\u2028é\ud800🪤"), max_size=12))
@settings(max_examples=settings.default.max_examples // 10)
def test_any_text_survives_escaping(text: str) -> None:
    ((_, attributes, shown),) = Page(element("p", text, title=text)).elements
    assert (shown, attributes["title"]) == (readable(text), readable(text))
    assert element("b", element("i", "x")) == "<b><i>x</i></b>"
    inside = embed([text])
    assert json.loads(inside.encode("utf-8")) == [text.replace("\ud800", "\ufffd")]
    assert "<" not in inside


def test_numbers_that_json_does_not_have_are_null() -> None:
    odd = {"a": [math.nan, 1.5, (math.inf, -math.inf)], "b": {"c": math.nan, "d": 2, "e": "NaN", "f": None, "g": True}}

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    read = json.loads(embed(odd), parse_constant=refuse)
    assert read == {"a": [None, 1.5, [None, None]], "b": {"c": None, "d": 2, "e": "NaN", "f": None, "g": True}}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the intervals, which are not finite either
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_record_with_an_odd_score_leaves_the_page_readable(tmp_path: Path, odd: float) -> None:
    folder = Folder(rows=paper_rows()).write(tmp_path / "run")
    path = folder / "records.jsonl"
    first, *others = path.read_text(encoding="utf-8").splitlines(keepends=True)
    values = json.loads(first)
    values["scores"] |= {"forced_nll": odd, "score": odd}
    values["timing"]["new_tokens"] = odd
    path.write_text(json.dumps(values) + "\n" + "".join(others), encoding="utf-8")
    page = Page(render(make_report([read_run(folder)], {})))
    assert "NaN" not in page.data
    assert "Infinity" not in page.data
    assert json.loads(page.data)["records"][0][5]["forced_nll"] is None


def test_figures_are_those_of_the_records(tmp_path: Path) -> None:
    """Against loops over the records: accuracy, seconds and the line."""
    report = report_of(tmp_path, Folder(rows=paper_rows(), examples=20, generations=2, judge=True))
    (run,) = report.runs.values()
    (group,) = report.groups
    for row in group.rows:
        own = [record for record in run.records if record.recipe_hash == row.entry.info.hash]
        by_example: dict[str, list[float]] = {}
        for record in own:
            if "all_correct" in record.scores:
                by_example.setdefault(record.example, []).append(record.scores["all_correct"])
        expected = sum(sum(some) / len(some) for some in by_example.values()) / len(by_example)
        assert row.accuracy is not None
        assert row.accuracy.value == pytest.approx(expected)
        seconds = [
            record.timing["prefill_seconds"]
            + (record.timing["new_tokens"] - 1) * record.timing["decode_ms_per_token"] / 1000 / 8
            for record in own
        ]
        assert row.seconds == pytest.approx(sum(seconds) / len(seconds))
    assert [line.full.entry.info.prompting for line in group.lines] == ["direct", "chain_of_thought"]
    direct = group.lines[0]
    (x0, y0), (x1, y1) = direct.ends
    assert (direct.naive.entry.info.name, direct.full.entry.info.name) == ("naive SWA", "full attention")
    for row in group.rows:
        if row.entry.info.prompting == "direct":
            assert row.accuracy is not None
            assert row.seconds is not None
            level = y0 + (y1 - y0) / (x1 - x0) * (row.seconds - x0)
            assert group.over_line(row) == pytest.approx(row.accuracy.value - level)


def test_a_request_without_decoding_or_timing(tmp_path: Path) -> None:
    (record, *_) = read_run(Folder().write(tmp_path / "a")).records
    assert request_seconds(dataclasses.replace(record, timing={"prefill_seconds": 2.0, "batch_size": 4})) == 2.0
    assert request_seconds(dataclasses.replace(record, timing={})) is None


def test_heat_cells_against_a_loop(tmp_path: Path) -> None:
    report = report_of(tmp_path, Folder(examples=23, lengths=(450, 900), judge=True))
    (run,) = report.runs.values()
    heat = next(heat for heat in report.maps if heat.entry.naive)
    for length in (450, 900):
        for place_ in range(5):
            own = [
                record.scores["all_correct"]
                for record in run.records
                if record.recipe_hash == heat.entry.info.hash
                and record.length == length
                and place_ / 5 <= record.metadata["depths"][0] < (place_ + 1) / 5  # type: ignore[index]
                and "all_correct" in record.scores
            ]
            cell = heat.cells[length, place_]
            assert (cell.n, cell.accuracy) == (len(own), pytest.approx(sum(own) / len(own)))
        assert heat.edges[length] == pytest.approx(1 - WINDOW / (length - 3))
    drawn = heat_svg(heat)
    assert drawn.count(">n ") == 10
    assert drawn.count('class="edge"') == 1
    full = next(heat for heat in report.maps if heat.entry.info.is_full_attention)
    assert 'class="edge"' not in heat_svg(full)


def test_labels_hide_neither_marks_nor_each_other(tmp_path: Path) -> None:
    report = report_of(tmp_path, Folder(rows=paper_rows(), examples=100, words=20))
    (group,) = report.groups
    assert len(group.rows) == 34
    for size in ((820, 540), (360, 430)):
        boxes, marks = _placed(group, size)
        overlaps = [
            (i, j) for i, one in enumerate(boxes) for j, other in enumerate(boxes) if i < j and one.overlap(other) > 1
        ]
        hidden = [(i, j) for i, one in enumerate(boxes) for j, other in enumerate(marks) if one.overlap(other) > 12]
        assert overlaps == []
        assert hidden == []


def _placed(group: Group, size: tuple[int, int]) -> tuple[list[Box], list[Box]]:
    """Boxes of the numbers and of the marks, read back from the drawing."""
    tree = ElementTree.fromstring(pareto_svg(group, size))
    boxes, marks = [], []
    for point in tree.iter("g"):
        number = point.find("text")
        mark = point.find("path")
        assert number is not None
        assert mark is not None
        width = 6.5 * len(number.text or "")
        boxes.append(Box(float(number.attrib["x"]) - width / 2, float(number.attrib["y"]) - 9, width, 10))
        x, y = mark.attrib["transform"].removeprefix("translate(").removesuffix(")").split()
        marks.append(Box(float(x) - 5, float(y) - 5, 10, 10))
    return boxes, marks


@given(st.lists(st.tuples(st.floats(20, 80), st.floats(20, 80)), min_size=1, max_size=4, unique=True))
@settings(max_examples=settings.default.max_examples // 40)
def test_few_labels_never_overlap(points: list[tuple[float, float]]) -> None:
    boxes = place(points, [8.0] * len(points), Box(0, 0, 200, 200), 5)
    for index, box in enumerate(boxes):
        assert all(box.overlap(other) < 1e-9 for other in boxes[:index])
        assert box.outside(Box(0, 0, 200, 200)) < 1e-6


@given(st.floats(1e-6, 1e6), st.integers(3, 12))
@settings(max_examples=settings.default.max_examples // 10)
def test_ticks_are_even_and_reach_the_top(top: float, most: int) -> None:
    ticks = nice_ticks(top, most)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-6)
    assert len(steps) <= most + 1
    assert all(math.isclose(step, steps[0], rel_tol=1e-3) for step in steps)


@given(
    st.integers(0, 3000),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 80)), max_size=4),
    st.integers(40, 4000),
)
@settings(max_examples=settings.default.max_examples // 10)
def test_prompt_pieces_give_back_the_prompt(length: int, evidence: list[tuple[int, int]], limit: int) -> None:
    """Pieces and gaps add up to the prompt, and evidence is never among what is left out."""
    prompt = "".join(chr(0x1F600 + index % 50) if index % 7 == 0 else chr(97 + index % 26) for index in range(length))
    spans = [[start, start + size] for start, size in evidence if start + size <= length]
    sample = Sample("t", 1, "e", prompt, 1, "a", metadata={"spans": spans, "prompt_start": 0})
    at, marked = 0, set()
    for piece in prompt_pieces(sample, limit):
        kind, text = ("t", piece) if isinstance(piece, str) else piece
        if kind == "x":
            at += text
            continue
        assert prompt[at : at + len(text)] == text
        if kind == "e":
            marked |= set(range(at, at + len(text)))
        at += len(text)
    assert at == length
    assert marked == {place_ for start, stop in spans for place_ in range(start, stop)}


def test_long_texts_are_cut_with_a_notice_and_the_page_stays_small(tmp_path: Path) -> None:
    folder = Folder(rows=paper_rows()[:3], examples=60, words=30_000)
    report = report_of(tmp_path, folder)
    data = browser_data(report.runs, report.entries, report.measure)
    assert len(data["prompts"]) == 60
    assert any("60 prompts are cut to 50,000 characters" in notice for notice in data["notices"])
    assert 50_000 in LIMITS
    assert all(
        any(piece[0] == "e" for piece in prompt["pieces"] if isinstance(piece, list)) for prompt in data["prompts"]
    )
    assert len(render(report).encode()) < 7_000_000


def test_evidence_is_marked_where_the_rendered_prompt_has_it(tmp_path: Path) -> None:
    report = report_of(tmp_path, Folder(examples=3))
    data = browser_data(report.runs, report.entries, report.measure)
    for prompt in data["prompts"]:
        (evidence,) = [piece[1] for piece in prompt["pieces"] if isinstance(piece, list)]
        assert evidence.startswith("The special number of the")
        assert evidence.endswith(f"is {prompt['answer']}.")


def test_standalone_svgs_are_svg_without_variables(tmp_path: Path) -> None:
    report = report_of(tmp_path, Folder(rows=paper_rows()[:5]))
    for svg in (pareto_svg(report.groups[0]), heat_svg(report.maps[1])):
        text = standalone(svg)
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in text
        assert "light-dark" not in text
    assert isinstance(svg, Markup)


def test_files_beside_the_page(tmp_path: Path) -> None:
    report = report_of(tmp_path, Folder(rows=paper_rows()[:5], lengths=(450, 900)))
    written = write_report(report, tmp_path / "r.html")
    assert all(path.stat().st_size > 100 for path in written)
    assert {path.suffix for path in written} == {".html", ".csv", ".svg", ".png"}
    assert not list(tmp_path.rglob(".*"))
    with (tmp_path / "r.files" / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 5  # two lengths and both together
    group = report.groups[0]
    for line, row in zip(lines, group.rows, strict=False):
        assert line["task"] == group.title
        assert row.accuracy is not None
        assert float(line["accuracy"]) == row.accuracy.value
        assert float(line["accuracy_low"]) == row.accuracy.low
        assert line["policy"] == row.entry.info.policy


def test_a_running_run_says_so_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    report = report_of(tmp_path, Folder(status="running", stop_after=25))
    warned = [text for _, text in Page(render(report)).all("li")]
    assert any("25 of 40 samples are on record" in text for text in warned)
    assert any("needle_multikey, 900 tokens: no answers yet of row 4." in text for text in warned)
    assert any("different sets of samples (5 to 10 a row, 5 in common)" in text for text in warned)
    empty = read_run(Folder(status="running", stop_after=0).write(tmp_path / "empty"))
    with pytest.raises(UserError, match="there is nothing to report: no sample is on record. Let the run write"):
        make_report([empty], {})


def test_several_runs_stand_side_by_side_and_different_samples_are_told(tmp_path: Path) -> None:
    same = report_of(tmp_path / "same", Folder(seed=1), Folder(rows=paper_rows()[9:12], seed=1))
    assert [entry.run for entry in same.entries] == ["a"] * 4 + ["b"] * 3
    assert [entry.number for entry in same.entries] == list(range(1, 8))
    page = Page(render(same))
    assert page.all("ul", class_="warnings") == []
    assert [text for values, text in page.all("button") if text == "run"] == ["run"]
    differ = report_of(tmp_path / "differ", Folder(examples=8), Folder(examples=10))
    warned = [text for _, text in Page(render(differ)).all("li")]
    assert any("rows have different sets of samples (8 to 10 a row, 8 in common)" in text for text in warned)
    run = next(iter(same.runs.values()))
    with pytest.raises(UserError, match="is given twice. Name each run once."):
        make_report([run, run], {})


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [read_run(Folder().write(tmp_path / parent / "run")) for parent in ("x", "y")]
    assert list(make_report(runs, {}).runs) == ["x/run", "y/run"]


def test_dropped_samples_are_named(tmp_path: Path) -> None:
    dropped = {
        **{"task": "needle_multikey", "length_limit": 900, "offered": 14, "kept": 10},
        "too_long": [{"example": "far <b>", "tokens": 1234}],
    }
    text = render(report_of(tmp_path, Folder(dropped=[dropped])))
    assert "10 of 14 examples asked; 1 longer than 900 tokens." in text
    assert "far &lt;b&gt; (1,234)" in text


def test_the_command_draws_masks_and_tells_what_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [*paper_rows()[:8], Row("own", "MyOwn(3)", 0.5, 1.0)]
    Folder(rows=rows).write(tmp_path / "run")
    assert main(["report", "run"]) == 0
    assert "Report: report.html (" in capsys.readouterr().out
    page = Page(text := (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "The masks of MyOwn(3) are not drawn: " in text
    layers = page.all("svg", class_="layers")
    assert len(layers) == 8
    families = {values["class"] for values, _ in page.all("svg") if "glyph" in str(values.get("class"))}
    assert {"glyph f-full", "glyph f-window", "glyph f-decode", "glyph f-layers", "glyph f-both"} <= families
    assert len(page.all("svg", class_="mask")) == 5 + 2 * 3  # five policies alike on all layers


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone"], "gone: there is no such folder"),
        (["run", "-o", "page.txt"], "--output: expected a file ending in .html, got 'page.txt'. Rename it."),
        (["run", "-o", "no/page.html"], "--output: the folder no does not exist. Create it first."),
        (["run", "-o", "dir.html"], "--output: dir.html is a folder. Name a file in it."),
        (["run", "run"], "run is given twice"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Folder(examples=2).write(tmp_path / "run")
    (tmp_path / "dir.html").mkdir()
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
