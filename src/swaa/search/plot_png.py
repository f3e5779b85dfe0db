"""The same panels as PNG, drawn by matplotlib: for where SVG cannot go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swaa.report.html.png import COLOURS, has_matplotlib
from swaa.search.outcome import ROLES
from swaa.search.plot import BEYOND, FRONT_LINE, Y_LABEL, Panel, back_to_front

_COLOURS = {role: COLOURS[of] for role, of in zip(ROLES, ("full", "decode", "window", "other"), strict=True)}
_MARKERS = dict(zip(ROLES, "so^D", strict=True))


def write_png(panels: Sequence[Panel], path: Path, *, title: str) -> bool:
    """Draw the panels side by side; False, and nothing drawn, where matplotlib is not installed."""
    if not has_matplotlib():
        return False
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, panel in zip(grid.flat, panels, strict=True):
        _draw(axes, panel)
    grid.flat[0].set_ylabel(Y_LABEL)
    figure.legend(handles=_legend(panels), loc="outside lower left", ncols=len(ROLES) + 2, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _draw(axes: Any, panel: Panel) -> None:
    if panel.front:
        places = [*panel.front, (panel.ends[1], panel.front[-1][1])]
        axes.step(*zip(*places, strict=True), "--", where="post", color=COLOURS["other"], lw=1.2)
    for mark in back_to_front(panel.marks):
        colour = _COLOURS[mark.role]
        axes.errorbar(
            [mark.x],
            [mark.y],
            [[mark.y - mark.low], [mark.high - mark.y]],
            fmt=_MARKERS[mark.role],
            markersize=6,
            color=colour,
            markerfacecolor=colour if mark.filled else "white",
            elinewidth=1,
        )
    axes.set(xlim=panel.ends, ylim=(0, panel.y_ticks[-1]), xlabel=panel.label)
    axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
    axes.set_yticks(panel.y_ticks)
    axes.grid(axis="y", color="#dedfda", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(panels: Sequence[Panel]) -> list[Any]:
    from matplotlib.lines import Line2D

    marks = [mark for panel in panels for mark in panel.marks]
    dots: dict[str, Any] = {"linestyle": "", "markersize": 6}
    roles = [role for role in ROLES if any(mark.role == role for mark in marks)]
    shown = [Line2D([], [], marker=_MARKERS[role], color=_COLOURS[role], label=role, **dots) for role in roles]
    if any(panel.front for panel in panels):
        shown.append(Line2D([], [], linestyle="--", color=COLOURS["other"], label=FRONT_LINE))
    if not all(mark.filled for mark in marks):
        grey = COLOURS["other"]
        shown.append(Line2D([], [], marker="o", color=grey, markerfacecolor="white", label=BEYOND, **dots))
    return shown
