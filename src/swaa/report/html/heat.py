"""Accuracy by prompt length and depth of the evidence: one map a row, with the window's edge and n in each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swaa.report.html.figures import Entry
from swaa.report.html.markup import Markup, element, join
from swaa.report.records import Record
from swaa.report.rows import answers
from swaa.report.slices import DEPTH_EDGES, UNKNOWN, make_slicer
from swaa.report.stats import example_means, mean

BINS = len(DEPTH_EDGES) + 1
"""Of depth: 0 is the prompt's beginning, 1 its end."""
CELL_WIDTH, CELL_HEIGHT = 50, 40
_LEFT, _TOP, _BOTTOM = 34, 8, 36
_DEPTH = make_slicer("depth", {})


@dataclass(frozen=True)
class Cell:
    """A length and bin of depth: accuracy, and how many examples it is of."""

    accuracy: float
    n: int


@dataclass(frozen=True)
class HeatMap:
    """A row on one task.

    Attributes:
        entry: the row.
        task: the task's label.
        lengths: columns, rising, in tokens.
        cells: (length, bin) -> what is there; bins without evidence are absent.
        edges: length -> depth at which the row's window begins, seen from the end of the prompt; none without a window.
    """

    entry: Entry
    task: str
    lengths: tuple[int, ...]
    cells: Mapping[tuple[int, int], Cell]
    edges: Mapping[int, float]


def heat_map(entry: Entry, task: str, records: Sequence[Record], measure: str) -> HeatMap | None:
    """The map of a row's records on a task; None where no record has both a depth and a verdict."""
    found: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        part = _DEPTH(record)
        if part != UNKNOWN and measure in record.scores:
            found.setdefault((record.length, int(part.place)), []).append(record)
    if not found:
        return None
    lengths = tuple(sorted({length for length, _ in found}))
    cells = {place: _cell_of(some, measure) for place, some in found.items()}
    window = entry.info.window
    edges = {}
    for length in lengths if window else ():
        tokens = mean(record.prompt_tokens for record in records if record.length == length)
        edges[length] = max(0.0, 1 - window / tokens) if window and tokens else 0.0
    return HeatMap(entry, task, lengths, cells, edges)


def _cell_of(records: Sequence[Record], measure: str) -> Cell:
    means = example_means(list(answers(records, lambda record: float(record.scores[measure] == 1)).values()))
    return Cell(sum(means) / len(means), len(means))


def size_of(heat: HeatMap) -> tuple[int, int]:
    """Width and height of the drawing, in CSS pixels."""
    return _LEFT + CELL_WIDTH * len(heat.lengths) + 2, _TOP + CELL_HEIGHT * BINS + _BOTTOM


def heat_svg(heat: HeatMap, *, class_: str = "heat") -> Markup:
    """The map: lengths to the right, depth downwards, the end of the prompt (and the question) at the bottom."""
    width, height = size_of(heat)
    places = [(column, row) for column in range(len(heat.lengths)) for row in range(BINS)]
    drawn = [*(_cell(heat, *place) for place in places), *_edge(heat), *(_figures(heat, *place) for place in places)]
    bottom = _TOP + CELL_HEIGHT * BINS
    for row in range(BINS + 1):
        y = _TOP + CELL_HEIGHT * row + 4
        drawn.append(_text("tick", _LEFT - 6, y, f"{(0, *DEPTH_EDGES, 1)[row]:.1f}", anchor="end"))
    for column, length in enumerate(heat.lengths):
        x = _LEFT + CELL_WIDTH * (column + 0.5)
        drawn.append(_text("tick", x, bottom + 15, f"{length:,}", anchor="middle"))
    drawn.append(_text("tick", _LEFT + CELL_WIDTH * len(heat.lengths) / 2, bottom + 31, "tokens", anchor="middle"))
    name = f"Accuracy by length and depth: {heat.entry.number} {heat.entry.info.name}, {heat.task}"
    return element(
        "svg",
        *drawn,
        class_=class_,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=name,
    )


def _cell(heat: HeatMap, column: int, row: int) -> Markup:
    x, y = _LEFT + CELL_WIDTH * column, _TOP + CELL_HEIGHT * row
    box = {"x": x + 0.5, "y": y + 0.5, "width": CELL_WIDTH - 1, "height": CELL_HEIGHT - 1}
    cell = heat.cells.get((heat.lengths[column], row))
    if cell is None:
        return element("rect", class_="nothing", **box)
    fill = element("rect", class_="share", fill_opacity=f"{cell.accuracy:.3f}", **box)
    frame = element("rect", class_="cell", **box)
    return element("g", frame, fill)


def _figures(heat: HeatMap, column: int, row: int) -> Markup:
    """What a cell says, above the window's edge; its colour is the one that reads best on the cell's."""
    cell = heat.cells.get((heat.lengths[column], row))
    if cell is None:
        return Markup()
    kind = " strong" if cell.accuracy > 0.75 else " middle" if cell.accuracy > 0.62 else ""
    x, y = _LEFT + CELL_WIDTH * (column + 0.5), _TOP + CELL_HEIGHT * row
    edge = heat.edges.get(heat.lengths[column])
    upper, lower = _baselines(None if edge is None else CELL_HEIGHT * (BINS * edge - row))
    value = _text(f"value{kind}", x, y + upper, f"{cell.accuracy:.2f}", anchor="middle")
    return join(value, _text(f"count{kind}", x, y + lower, f"n {cell.n}", anchor="middle"))


def _baselines(edge: float | None) -> tuple[float, float]:
    """Where the two lines of a cell stand, from its top: clear of the window's edge, which may cross the cell."""
    if edge is None or not 2 < edge < CELL_HEIGHT - 2:
        return 18, 31
    if edge < 13:
        return edge + 12.5, edge + 23
    if edge > CELL_HEIGHT - 13:
        return edge - 15, edge - 4
    return edge - 3.5, edge + 12


def _edge(heat: HeatMap) -> list[Markup]:
    """A step for each length; below it, evidence is inside the window of the last prompt token."""
    if not heat.edges:
        return []
    path = ""
    for column, length in enumerate(heat.lengths):
        x, y = _LEFT + CELL_WIDTH * column, _TOP + CELL_HEIGHT * BINS * heat.edges[length]
        path += f"{'L' if path else 'M'}{x} {y:.1f}H{x + CELL_WIDTH}"
    words = element("title", f"the window's edge: {heat.entry.info.window:,} tokens before the end of the prompt")
    return [element("path", words, class_="edge", d=path)]


def _text(kind: str, x: float, y: float, words: str, *, anchor: str) -> Markup:
    return element("text", words, class_=kind, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor)
