"""A benchmark's result -> two plots: time against context length, and speed-up over full attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from swaa.report.bench import Summary
from swaa.report.bench_table import Result

_DASHED = ("full", "floor", "native_window", "hf_flex", "kvpress")


def write_plots(result: Result, time: Path, speedup: Path) -> bool:
    """Draw both; False, and nothing drawn, where matplotlib is not installed or there is nothing to draw."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    if not result.summaries:
        return False
    mpl.use("Agg")
    _time(result, time)
    _speedup(result, speedup)
    return True


def _time(result: Result, path: Path) -> None:
    from matplotlib import pyplot as plt

    panels: list[tuple[str, Callable[[Summary], float | None]]] = [("prefill, s", lambda row: row.prefill)]
    if any(row.step is not None for row in result.summaries):
        panels.append(("decode step, ms", lambda row: None if row.step is None else 1e3 * row.step))
        panels.append(("whole request, s", lambda row: row.request))
    figure, grid = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), squeeze=False, layout="constrained")
    lengths = sorted({row.length for row in result.summaries})
    for axes, (label, value) in zip(grid.flat, panels, strict=True):
        for name in result.rows:
            points = [(row.length, value(row)) for row in result.summaries if row.row == name]
            drawn = [(x, y) for x, y in points if y is not None]
            if drawn:
                style = {"linestyle": "--", "alpha": 0.7} if name in _DASHED else {}
                axes.plot(*zip(*drawn, strict=True), marker="o", markersize=4, label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel="prompt, tokens", ylabel=label)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
    figure.suptitle(result.title, fontsize=10)
    _legend(figure, grid)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _speedup(result: Result, path: Path) -> None:
    """A bar for each row at the longest length that has full attention, its ideal and its prediction as marks."""
    from matplotlib import pyplot as plt

    rows = [row for row in result.summaries if row.request_ratio is not None and row.row != "full"]
    longest = max((row.length for row in rows), default=None)
    rows = [row for row in rows if row.length == longest]
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.42 * max(1, len(rows))), layout="constrained")
    places = range(len(rows))
    colours = ["#9aa5b1" if row.row in _DASHED else "#2463a8" for row in rows]
    axes.barh(places, [1 / row.request_ratio for row in rows if row.request_ratio], color=colours)
    _marks(axes, [row.ideal_ratio for row in rows], "|", "ideal from visible pairs", "black")
    _marks(axes, [row.expected.request for row in rows], "x", "predicted", "#d9822b")
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(places, [row.row for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("speed-up of the whole request over full attention")
    axes.set_title(result.title if longest is None else f"{result.title}, {longest:,} tokens", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _marks(axes: Any, ratios: list[float | None], marker: str, label: str, colour: str) -> None:
    points = [(1 / ratio, place) for place, ratio in enumerate(ratios) if ratio]
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, marker=marker, s=110, color=colour, label=label, zorder=3)


def _legend(figure: Any, grid: Any) -> None:
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
