"""Accuracy against seconds a request, as SVG: a numbered mark a row, and the line from naive SWA to full attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from swaa.report.html.figures import Figures, Group, point
from swaa.report.html.labels import Box, place
from swaa.report.html.marks import described, mark
from swaa.report.html.markup import Markup, element

WIDE, NARROW = (820, 540), (360, 430)
"""Widths and heights, in CSS pixels: drawn apart, so that text has its size on every screen."""
RADIUS = 6.5
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 46


def drawable(group: Group) -> list[Figures]:
    """The rows that have both figures."""
    return [row for row in group.rows if None not in point(row)]


def nice_ticks(top: float, most: int) -> list[float]:
    """Round ticks from 0 that reach at least ``top`` (> 0), at most ``most`` steps."""
    rough = top / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * (1 - 1e-9))
    count = math.ceil(top / step - 1e-9)
    return [round(step * index, 10) for index in range(count + 1)]


def pareto_svg(group: Group, size: tuple[int, int] = WIDE, *, class_: str = "plot") -> Markup:
    """The plot; :func:`drawable` must find at least one row."""
    return _Plot(group, drawable(group), size).svg(class_)


class _Plot:
    """The scales of a plot and what is drawn with them."""

    def __init__(self, group: Group, rows: Sequence[Figures], size: tuple[int, int]) -> None:
        self._group, self._rows = group, rows
        self._width, self._height = size
        places = [point(row) for row in rows]
        longest = max(x for x, _ in places if x is not None)
        highest = max(_ends(row)[1] for row in rows)
        self._longest = 1.04 * longest or 1.0
        self._x_ticks = [tick for tick in nice_ticks(self._longest, 8 if size == WIDE else 5) if tick <= self._longest]
        self._y_ticks = [tick / 100 for tick in nice_ticks(100 * min(1.0, highest), 10)]

    def svg(self, class_: str) -> Markup:
        parts = [*self._axes(), *self._lines(), *self._whiskers(), *self._points()]
        return element(
            "svg",
            *parts,
            class_=class_,
            viewBox=f"0 0 {self._width} {self._height}",
            width=self._width,
            height=self._height,
            role="group",
            aria_label=f"Accuracy against seconds a request: {self._group.title}",
        )

    def _x(self, seconds: float) -> float:
        return _LEFT + seconds / self._longest * (self._width - _LEFT - _RIGHT)

    def _y(self, accuracy: float) -> float:
        return self._height - _BOTTOM - accuracy / self._y_ticks[-1] * (self._height - _TOP - _BOTTOM)

    def _axes(self) -> list[Markup]:
        left, right = self._x(0), self._x(self._longest)
        bottom = self._y(0)
        drawn = []
        for tick in self._y_ticks:
            y = self._y(tick)
            drawn.append(_line("grid", left, y, right, y))
            drawn.append(_text("tick", left - 8, y + 4, f"{100 * tick:g}", anchor="end"))
        for tick in self._x_ticks:
            x = self._x(tick)
            drawn.append(_line("axis", x, bottom, x, bottom + 4))
            drawn.append(_text("tick", x, bottom + 18, f"{tick:g}", anchor="middle"))
        drawn.append(_line("axis", left, bottom, right, bottom))
        drawn.append(_text("title", (left + right) / 2, self._height - 8, "seconds a request", anchor="middle"))
        upright = f"rotate(-90 12 {(_TOP + bottom) / 2:.1f})"
        middle = (_TOP + bottom) / 2
        drawn.append(_text("title", 12, middle, "accuracy, %", anchor="middle", transform=upright))
        return drawn

    def _lines(self) -> list[Markup]:
        drawn = []
        for line in self._group.lines:
            (x0, y0), (x1, y1) = line.ends
            kind = "naive-line" if line.full.entry.info.prompting == "direct" else "naive-line dashed"
            words = element("title", f"full attention to naive SWA, {line.label}")
            ends = {"x1": self._x(x0), "y1": self._y(y0), "x2": self._x(x1), "y2": self._y(y1)}
            drawn.append(element("line", words, class_=kind, **{key: f"{value:.1f}" for key, value in ends.items()}))
        return drawn

    def _whiskers(self) -> list[Markup]:
        drawn = []
        for row in self._rows:
            x = self._x(row.seconds or 0.0)
            low, high = map(self._y, _ends(row))
            drawn.append(_line(f"whisker f-{row.entry.family}", x, low, x, high, data_row=row.entry.number))
        return drawn

    def _points(self) -> list[Markup]:
        centres = [(self._x(x or 0.0), self._y(y or 0.0)) for x, y in map(point, self._rows)]
        widths = [6.8 * len(str(row.entry.number)) + 1 for row in self._rows]
        frame = Box(_LEFT + 2, 2, self._width - _LEFT - 4, self._height - _BOTTOM - 4)
        boxes = place(centres, widths, frame, RADIUS)
        drawn = []
        for row, (x, y), box in zip(self._rows, centres, boxes, strict=True):
            entry = row.entry
            middle = (box.left + box.width / 2, box.top + box.height / 2)
            leader = None
            if math.dist(middle, (x, y)) > 3.4 * RADIUS:
                leader = _line("leader", x, y, *middle)
            number = _text("number", middle[0], middle[1] + 4, str(entry.number), anchor="middle")
            drawn.append(
                element(
                    "g",
                    element("title", told(row)),
                    leader,
                    mark(entry.info.prompting, filled=entry.tuned, x=x, y=y),
                    number,
                    class_=f"point f-{entry.family}",
                    data_row=entry.number,
                    tabindex=0,
                    role="img",
                    aria_label=told(row),
                )
            )
        return drawn


def told(row: Figures) -> str:
    """A row's figures in one line of words."""
    assert row.accuracy is not None
    low, high = _ends(row)
    figures = f"{100 * row.accuracy.value:.1f} % [{100 * low:.0f}, {100 * high:.0f}] of {row.accuracy.n}"
    seconds = "" if row.seconds is None else f", {row.seconds:.3g} s"
    name, more = f"{row.entry.number} {row.entry.info.name}", described(row.entry)
    return f"{name}{f' ({more})' if more else ''}: {figures}{seconds}"


def _ends(row: Figures) -> tuple[float, float]:
    """The interval of a row's accuracy; the value itself where one example gives none."""
    share = row.accuracy
    assert share is not None
    return share.value if share.low is None else share.low, share.value if share.high is None else share.high


def _line(kind: str, x1: float, y1: float, x2: float, y2: float, **more: object) -> Markup:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", class_=kind, **{key: f"{value:.1f}" for key, value in ends.items()}, **more)


def _text(kind: str, x: float, y: float, words: str, *, anchor: str, **more: object) -> Markup:
    return element("text", words, class_=kind, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **more)
