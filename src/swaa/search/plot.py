"""Accuracy against each kind of cost, a panel each: what is drawn, and the drawing as SVG, which needs no library."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from swaa.report.html.files import standalone
from swaa.report.html.markup import Markup, element
from swaa.report.html.plot import nice_ticks
from swaa.report.stats import Estimate
from swaa.search.budget import KINDS
from swaa.search.outcome import ROLES, Outcome

STEP = 0.02
"""How far roles of like cost are set apart, as a share of the axis."""
MARGIN = 0.08
"""Room beside the outermost costs, as a share of what lies between them; to the right twice that, for controls."""
Y_LABEL = "accuracy, % (bars: 95 % interval)"
BEYOND = "hollow: beyond the budget"
FRONT_LINE = "front: the most accurate at no more cost"


@dataclass(frozen=True)
class Mark:
    """A recipe in a panel.

    Attributes:
        role: one of ``ROLES``.
        cost: what it costs.
        x: where it is drawn: roles of like cost stand beside each other.
        y, low, high: accuracy and the ends of its interval, in percent.
        filled: within the budget.
        told: its name and figures in words.
    """

    role: str
    cost: float
    x: float
    y: float
    low: float
    high: float
    filled: bool
    told: str


@dataclass(frozen=True)
class Panel:
    """One kind of cost.

    Attributes:
        label: of the axis, with its unit.
        marks: all recipes.
        front: costs and accuracies in percent of those on the front, by cost.
        ends: of the axis.
        ticks: of the axis.
        y_ticks: of accuracy, in percent; the first is 0.
    """

    label: str
    marks: tuple[Mark, ...]
    front: tuple[tuple[float, float], ...]
    ends: tuple[float, float]
    ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]


def panels_of(outcome: Outcome, *, unit: str, units: int) -> list[Panel]:
    """The panels of an outcome, one for each kind of cost.

    Args:
        unit: ``layers`` or ``heads``.
        units: of the model.
    """
    labels = {
        "full_layers": f"{unit} with full attention, of {units}",
        "time_ratio": "predicted time / full attention's",
        "kv_share": "keys and values kept / full attention's",
    }
    highest = max(_percent(one.accuracy)[2] for one in outcome.tested)
    y_ticks = tuple(nice_ticks(max(highest, 1.0), 10))
    found = []
    for kind in KINDS:
        costs = {one.name: float(getattr(one.costs, kind)) for one in outcome.tested}
        ends = _ends(costs.values())
        marks = []
        for one in outcome.tested:
            y, low, high = _percent(one.accuracy)
            told = f"{one.name}, {one.role}: {y:.1f} % [{low:.1f}, {high:.1f}] at {costs[one.name]:.3g}"
            marks.append(Mark(one.role, costs[one.name], costs[one.name], y, low, high, one.within_budget, told))
        front = sorted((costs[one.name], 100 * one.accuracy.value) for one in outcome.tested if kind in one.fronts)
        ticks = _ticks(ends, whole=kind == "full_layers")
        found.append(Panel(labels[kind], _apart(marks, ends), tuple(front), ends, ticks, y_ticks))
    return found


def _percent(figure: Estimate) -> tuple[float, float, float]:
    """Value, low and high; one example has no interval."""
    ends = (figure.value if end is None else end for end in (figure.low, figure.high))
    low, high = ends
    return 100 * figure.value, 100 * min(low, figure.value), 100 * max(high, figure.value)


def _ends(costs: Collection[float]) -> tuple[float, float]:
    """The ends of an axis that shows all costs."""
    least, most = min(costs), max(costs)
    room = MARGIN * (most - least or most or 1.0)
    return least - room, most + 2 * room


def _ticks(ends: tuple[float, float], *, whole: bool) -> tuple[float, ...]:
    """Round numbers between the ends, about five."""
    low, high = ends
    ticks = nice_ticks(high, max(1, min(60, round(5 * high / (high - low)))))
    return tuple(tick for tick in ticks if low <= tick <= high and (not whole or tick == int(tick)))


def _apart(marks: Sequence[Mark], ends: tuple[float, float]) -> tuple[Mark, ...]:
    """The marks, those of different roles and like costs set beside each other: controls to the right."""
    step = STEP * (ends[1] - ends[0])
    found = []
    for mark in marks:
        like = {other.role for other in marks if abs(other.cost - mark.cost) < step}
        before = sum(role in like for role in ROLES[: ROLES.index(mark.role)])
        found.append(replace(mark, x=mark.cost + before * step))
    return tuple(found)


def back_to_front(marks: Sequence[Mark]) -> list[Mark]:
    """In the order of drawing: random sets, which are many, hide nothing that stands beside them."""
    return sorted(marks, key=lambda mark: -ROLES.index(mark.role))


_SIZE, _LEFT, _TOP, _GAP, _BELOW = 290, 58, 40, 26, 86
_CLASSES = dict(zip(ROLES, ("f-full", "f-decode", "f-window", "f-other"), strict=True))
"""Colours of palette.css."""
_SHAPES = {
    "full attention": "M-5 -5H5V5H-5z",
    "chosen": "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0z",
    "fixed pattern": "M0 -6.6L6.4 4.8H-6.4z",
    "random set": "M0 -6L6 0L0 6L-6 0z",
}
_BAR = {"style": "stroke-opacity:.55;stroke-width:1.2"}


def to_svg(panels: Sequence[Panel], *, title: str) -> str:
    """The panels side by side, as a file."""
    width = _LEFT + len(panels) * (_SIZE + _GAP)
    height = _TOP + _SIZE + _BELOW
    parts = [_text("title", _LEFT, 22, title, anchor="start")]
    middle = _TOP + _SIZE / 2
    turned = f"rotate(-90 14 {middle})"
    parts.append(_text("title", 14, middle, Y_LABEL, anchor="middle", transform=turned))
    for place, panel in enumerate(panels):
        parts += _panel(panel, _LEFT + place * (_SIZE + _GAP), numbers=place == 0)
    parts += _legend(panels, height - 16)
    drawn = element(
        "svg",
        *parts,
        class_="plot",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=f"Accuracy against cost: {title}",
    )
    return standalone(drawn)


def _panel(panel: Panel, left: float, *, numbers: bool) -> list[Markup]:
    low, high = panel.ends
    bottom = _TOP + _SIZE

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * _SIZE

    def up(value: float) -> float:
        return bottom - value / panel.y_ticks[-1] * _SIZE

    drawn = []
    for tick in panel.y_ticks:
        drawn.append(_path("grid", f"M{left} {up(tick):.1f}h{_SIZE}"))
        if numbers:
            drawn.append(_text("tick", left - 8, up(tick) + 4, f"{tick:g}", anchor="end"))
    for tick in panel.ticks:
        drawn.append(_path("axis", f"M{across(tick):.1f} {bottom}v4"))
        drawn.append(_text("tick", across(tick), bottom + 18, f"{tick:g}", anchor="middle"))
    drawn.append(_path("axis", f"M{left} {bottom}h{_SIZE}"))
    drawn.append(_text("title", left + _SIZE / 2, bottom + 38, panel.label, anchor="middle"))
    if panel.front:
        steps = "".join(f"H{across(x):.1f}V{up(y):.1f}" for x, y in panel.front[1:])
        (x, y), end = panel.front[0], across(high)
        line = f"M{across(x):.1f} {up(y):.1f}{steps}H{end:.1f}"
        drawn.append(_path("naive-line dashed", line))
    for mark in back_to_front(panel.marks):
        x = across(mark.x)
        bar = _path("whisker", f"M{x:.1f} {up(mark.low):.1f}V{up(mark.high):.1f}", **_BAR)
        shape = _shape(mark.role, x, up(mark.y), filled=mark.filled)
        drawn.append(element("g", element("title", mark.told), bar, shape, class_=_CLASSES[mark.role]))
    return drawn


def _legend(panels: Sequence[Panel], y: float) -> list[Markup]:
    marks = [mark for panel in panels for mark in panel.marks]
    drawn, x = [], float(_LEFT)
    for role in ROLES:
        if any(mark.role == role for mark in marks):
            drawn.append(element("g", _shape(role, x + 6, y - 4, filled=True), class_=_CLASSES[role]))
            drawn.append(_text("tick", x + 18, y, role, anchor="start"))
            x += 40 + 6.6 * len(role)
    if any(panel.front for panel in panels):
        drawn.append(_path("naive-line dashed", f"M{x} {y - 4}h22"))
        drawn.append(_text("tick", x + 28, y, FRONT_LINE, anchor="start"))
        x += 50 + 6.2 * len(FRONT_LINE)
    if not all(mark.filled for mark in marks):
        drawn.append(_text("tick", x, y, BEYOND, anchor="start"))
    return drawn


def _shape(role: str, x: float, y: float, *, filled: bool) -> Markup:
    place = f"translate({x:.1f} {y:.1f})"
    return element("path", class_="mark filled" if filled else "mark", d=_SHAPES[role], transform=place)


def _path(kind: str, d: str, **more: object) -> Markup:
    return element("path", class_=kind, d=d, **more)


def _text(kind: str, x: float, y: float, words: str, *, anchor: str, **more: object) -> Markup:
    return element("text", words, class_=kind, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **more)
