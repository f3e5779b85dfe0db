"""The plots as PNG, drawn by matplotlib: for where SVG cannot go. The page itself needs none of this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swaa.report.html.figures import Figures, Group, point
from swaa.report.html.heat import BINS, HeatMap
from swaa.report.slices import DEPTH_EDGES

COLOURS = {
    "full": "#1b1d21",
    "window": "#b8481c",
    "decode": "#1d6fb8",
    "layers": "#23804f",
    "both": "#8034ad",
    "other": "#5f6570",
}
"""The light ones of palette.css."""
_MARKERS = {"direct": "o", "chain_of_thought": "^", "thinking": "s"}


def has_matplotlib() -> bool:
    """Whether PNG files can be drawn."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    return True


def pareto_png(group: Group, rows: Sequence[Figures], path: Path) -> None:
    """Accuracy against time, with the rows' names to the right."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(11, max(5.0, 0.19 * len(rows) + 1)), layout="constrained")
    for line in group.lines:
        (x0, y0), (x1, y1) = line.ends
        style = "-" if line.full.entry.info.prompting == "direct" else "--"
        axes.plot((x0, x1), (100 * y0, 100 * y1), style, color=COLOURS["other"], linewidth=1, zorder=1)
    for row in rows:
        _point(axes, row)
    axes.set(xlabel="seconds a request", ylabel="accuracy, %", title=group.title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#dedfda", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=7, labelspacing=0.35)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _point(axes: Any, row: Figures) -> None:
    entry, (seconds, accuracy) = row.entry, point(row)
    assert accuracy is not None
    colour = COLOURS[entry.family]
    axes.plot(
        [seconds],
        [100 * accuracy],
        linestyle="",
        marker=_MARKERS.get(entry.info.prompting, "o"),
        markersize=7,
        color=colour,
        markerfacecolor=colour if entry.tuned else "white",
        label=f"{entry.number} {entry.info.name}",
    )
    axes.annotate(str(entry.number), (seconds, 100 * accuracy), xytext=(5, 4), textcoords="offset points", fontsize=7)


def heat_png(maps: Sequence[HeatMap], path: Path) -> None:
    """All heat maps of a task side by side."""
    from matplotlib import pyplot as plt

    columns = min(len(maps), max(1, round(math.sqrt(3 * len(maps)))))
    rows = -(-len(maps) // columns)
    width = 0.9 + 0.62 * max(len(heat.lengths) for heat in maps)
    size = (max(1.7, width) * columns, 3.1 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(maps) :]:
        axes.set_visible(False)
    for axes, heat in zip(grid.flat, maps, strict=False):
        _heat(axes, heat)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _heat(axes: Any, heat: HeatMap) -> None:
    values = [[math.nan] * len(heat.lengths) for _ in range(BINS)]
    for (length, place), cell in heat.cells.items():
        column = heat.lengths.index(length)
        values[place][column] = cell.accuracy
        colour = "white" if cell.accuracy > 0.5 else "black"
        words = f"{cell.accuracy:.2f}\nn {cell.n}"
        axes.text(column, place, words, ha="center", va="center", fontsize=6.5, color=colour)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for column, length in enumerate(heat.lengths):
        if length in heat.edges:
            y = BINS * heat.edges[length] - 0.5
            axes.plot((column - 0.5, column + 0.5), (y, y), color="#c2410c", linewidth=1.8)
    axes.set_xticks(range(len(heat.lengths)), [f"{length:,}" for length in heat.lengths], fontsize=6.5)
    ends = (0, *DEPTH_EDGES, 1)
    axes.set_yticks([place - 0.5 for place in range(BINS + 1)], [f"{end:.1f}" for end in ends], fontsize=6.5)
    axes.set_xlim(-0.5, len(heat.lengths) - 0.5)
    axes.set_ylim(BINS - 0.5, -0.5)
    axes.set_title(f"{heat.entry.number} {heat.entry.info.name}", fontsize=6.5, wrap=True)
