"""The plot: what is drawn, against the figures; the SVG read back as XML, the PNG as pixels."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.test_outcome import SAMPLES, answers, costs, entry, full, roles
from swaa.config import Scenarios
from swaa.search.budget import KINDS, Costs
from swaa.search.outcome import ROLES, Outcome, judge
from swaa.search.plot import BEYOND, FRONT_LINE, STEP, Mark, Panel, panels_of, to_svg
from swaa.search.plot_png import write_png

few = settings(max_examples=settings.default.max_examples // 10)
SVG = "{http://www.w3.org/2000/svg}"
rows = st.lists(st.tuples(costs, answers, roles, st.booleans()), min_size=0, max_size=6)


def outcome_of(best: list[int], drawn: list[tuple[Costs, list[int], str, bool]]) -> Outcome:
    entries = [full(best), *(entry(n, cost, right, role, within=ok) for n, (cost, right, role, ok) in enumerate(drawn))]
    return judge(entries, Scenarios(), new_tokens=5)


def planted() -> Outcome:
    """Every role, one of them beyond the budget, and three of one cost."""
    half, some = [1] * 4 + [0] * 4, [1] * 2 + [0] * 6
    return outcome_of(
        [1] * 7 + [0],
        [
            (Costs(2, 0.5, 0.4), half, "chosen", True),
            (Costs(2, 0.5, 0.4), some, "fixed pattern", True),
            (Costs(2, 0.5, 0.4), some, "random set", True),
            (Costs(4, 0.8, 0.7), half, "fixed pattern", False),
        ],
    )


@few
@given(answers, rows)
def test_every_recipe_is_drawn_where_its_figures_are(
    best: list[int], drawn: list[tuple[Costs, list[int], str, bool]]
) -> None:
    outcome = outcome_of(best, drawn)
    for kind, panel in zip(KINDS, panels_of(outcome, unit="layers", units=30), strict=True):
        assert len(panel.marks) == len(outcome.tested)
        low, high = panel.ends
        for one, mark in zip(outcome.tested, panel.marks, strict=True):
            cost = getattr(one.costs, kind)
            assert (mark.role, mark.cost, mark.filled) == (one.role, cost, one.within_budget)
            assert mark.y == pytest.approx(100 * one.accuracy.value)
            assert 0 <= mark.low <= mark.y <= mark.high <= panel.y_ticks[-1] + 1e-9
            assert one.name in mark.told
            assert low < mark.x < high
            assert 0 <= mark.x - cost <= 3 * STEP * (high - low) + 1e-9, "to the right, and not far"
        check_apart(panel)
        check_front(panel, kind, outcome)
        assert all(low <= tick <= high for tick in panel.ticks)
        assert len(panel.ticks) >= 1
        assert kind != "full_layers" or all(tick == int(tick) for tick in panel.ticks)


def check_apart(panel: Panel) -> None:
    """Roles of one cost do not stand upon each other."""
    for one in panel.marks:
        for other in panel.marks:
            if one.cost == other.cost and one.role != other.role:
                assert abs(one.x - other.x) >= 0.99 * STEP * (panel.ends[1] - panel.ends[0])


def check_front(panel: Panel, kind: str, outcome: Outcome) -> None:
    on = sorted((getattr(one.costs, kind), 100 * one.accuracy.value) for one in outcome.tested if kind in one.fronts)
    assert list(panel.front) == on
    heights = [y for _, y in panel.front]
    assert heights == sorted(heights), "who pays more gets more"


def drawing(outcome: Outcome, title: str = "a model") -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(panels_of(outcome, unit="heads", units=36), title=title))


def words(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def shown(root: ElementTree.Element) -> list[tuple[str, float, float, list[float], str]]:
    """The recipes of all panels: class, place, the ends of the bar, and class of the shape."""
    found = []
    for group in root.iter(f"{SVG}g"):
        bar, shape = group.find(f"{SVG}path[@class='whisker']"), group.findall(f"{SVG}path")[-1]
        if bar is not None:
            x, y = map(float, re.findall(r"-?[\d.]+", shape.get("transform", "")))
            start, *ends = map(float, re.findall(r"-?[\d.]+", bar.get("d", "")))
            assert start == x
            found.append((group.get("class", ""), x, y, ends, shape.get("class", "")))
    return found


def test_the_svg_shows_the_panels() -> None:
    outcome = planted()
    root = drawing(outcome, title='smol & "<co>"')
    assert {'smol & "<co>"', "heads with full attention, of 36", *ROLES, BEYOND, FRONT_LINE} <= set(words(root))
    assert {"predicted time / full attention's", "keys and values kept / full attention's"} <= set(words(root))
    assert "accuracy, % (bars: 95 % interval)" in words(root)
    marks = shown(root)
    assert len(marks) == 3 * len(outcome.tested)
    order = [3, 2, 4, 1, 0]
    assert [kind for kind, *_ in marks[:5]] == ["f-other", "f-window", "f-window", "f-decode", "f-full"], (
        "chance behind"
    )
    assert [shape for *_, shape in marks[:5]] == ["mark filled"] * 2 + ["mark"] + ["mark filled"] * 2
    shapes = {path.get("d") for path in root.iter(f"{SVG}path") if "mark" in path.get("class", "").split()}
    assert len(shapes) == len(ROLES)
    # heights are linear in accuracy: two recipes fix the scale, the others and all bars lie on it
    figures = [outcome.tested[place].accuracy for place in order]
    (top, bottom), (y0, y1) = (figures[4].value, figures[0].value), (marks[4][2], marks[0][2])
    for (_, _, y, ends, _), figure in zip(marks, figures * 3, strict=True):
        assert figure.low is not None
        assert figure.high is not None
        for drawn, value in ((y, figure.value), (ends[0], figure.low), (ends[1], figure.high)):
            assert drawn == pytest.approx(y0 + (value - top) / (bottom - top) * (y1 - y0), abs=0.3)
    told = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert any(text.startswith("r0, chosen: 50.0 % [") and text.endswith("at 0.5") for text in told)


def test_every_mark_is_inside_the_svg_and_its_own_panel() -> None:
    root = drawing(planted())
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    marks = shown(root)
    each = len(marks) // 3
    for place in range(3):
        xs = [x for _, x, *_ in marks[place * each : (place + 1) * each]]
        assert place * width / 3 < min(xs) < max(xs) < (place + 1) * width / 3
    assert all(0 < y < height and ends[0] < height and ends[1] > 0 for _, _, y, ends, _ in marks)


def test_the_front_goes_through_what_stands_on_it() -> None:
    root = drawing(planted())
    lines = [path.get("d", "") for path in root.iter(f"{SVG}path") if path.get("class") == "naive-line dashed"]
    assert len(lines) == 4, "three panels and the legend"
    by_class = {(kind, shape): (x, y) for kind, x, y, _, shape in shown(root)[:5]}
    chosen, whole = by_class["f-decode", "mark filled"], by_class["f-full", "mark filled"]
    assert lines[0].startswith(f"M{chosen[0]:.1f} {chosen[1]:.1f}H{whole[0]:.1f}V{whole[1]:.1f}H")


def test_controls_stand_near_what_they_cost() -> None:
    """Of 8 layers, where the axis goes on to 30, a control may not be taken for one of 10."""
    drawn = [(Costs(8, 0.6, 1.0), [1] * SAMPLES, role, True) for role in ROLES[1:]]
    chosen, pattern, chance = panels_of(outcome_of([1] * SAMPLES, drawn), unit="layers", units=30)[0].marks[1:]
    assert chosen.x == 8 < pattern.x < chance.x < 9.2


def test_nothing_beyond_the_budget_needs_no_word_for_it() -> None:
    everyone = outcome_of([1] * SAMPLES, [])
    found = words(drawing(everyone))
    assert BEYOND not in found
    assert "chosen" not in found
    assert "full attention" in found


def test_the_png_has_every_roles_colour(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    panels = panels_of(planted(), unit="layers", units=30)
    assert write_png(panels, tmp_path / "a.png", title="a model")
    pixels = (image.imread(tmp_path / "a.png")[..., :3] * 255).round().astype(int)
    for colour in ("#1b1d21", "#1d6fb8", "#b8481c", "#5f6570"):
        wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
        assert (np.abs(pixels - wanted).max(axis=-1) <= 2).sum() > 100, colour
    fewer = [Panel(p.label, p.marks[:1], p.front, p.ends, p.ticks, p.y_ticks) for p in panels]
    assert write_png(fewer, tmp_path / "b.png", title="a model")
    pixels = (image.imread(tmp_path / "b.png")[..., :3] * 255).round().astype(int)
    assert (np.abs(pixels - np.array([0x1D, 0x6F, 0xB8])).max(axis=-1) <= 2).sum() == 0, "no role is shown that is none"


def test_without_matplotlib_there_is_no_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not write_png(panels_of(planted(), unit="layers", units=30), tmp_path / "a.png", title="a model")
    assert list(tmp_path.iterdir()) == []


def test_equal_costs_make_a_panel_too() -> None:
    same = outcome_of([1] * SAMPLES, [(Costs(0, 1.0, 1.0), [0] * SAMPLES, "chosen", True)])
    panel = panels_of(same, unit="layers", units=30)[2]
    assert panel.ends[0] < 1 < panel.ends[1]
    assert 1.0 in panel.ticks
    assert isinstance(panel.marks[0], Mark)
