"""Mask pictures: plain data from the compiler -> text for a terminal, or an image."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swaa.errors import UserError, invalid
from swaa.report.explain import index_runs

_SHADES = "·░▒▓█"
_FORMATS = (".png", ".svg", ".pdf")
_PREFILL, _DECODE, _HIDDEN = "#2463a8", "#d9822b", "#e8e8e8"


def to_text(pictures: Sequence[Mapping[str, Any]]) -> str:
    """The pictures as text: queries downwards, keys to the right, a rule where decoding begins."""
    return "\n\n".join(_one_as_text(picture) for picture in pictures)


def to_image(pictures: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write the pictures side by side to ``path``, whose ending names the format (png, svg or pdf).

    Raises:
        UserError: another ending, a folder that is not there, or matplotlib is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise invalid("output", accepted=f"a file ending in {', '.join(_FORMATS)}", got=str(path), mend="Rename it.")
    if not target.parent.is_dir():
        raise UserError(f"output: the folder {target.parent} does not exist. Create it first.")
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError("drawing to a file needs matplotlib. Install it with: pip install 'swaa[plot]'") from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    columns = min(3, len(pictures))
    rows = -(-len(pictures) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, 5.4 * rows), squeeze=False, layout="tight")
    for axes in grid.flat[len(pictures) :]:
        axes.set_visible(False)
    for axes, picture in zip(grid.flat, pictures, strict=False):
        _draw(axes, picture)
    legend = [
        Patch(color=_PREFILL, label="visible, prefill"),
        Patch(color=_DECODE, label="visible, decode"),
        Patch(color=_HIDDEN, label="hidden by the policy"),
    ]
    figure.legend(
        handles=legend, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(3, 2 * columns), frameon=False
    )
    figure.savefig(target, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return target


def _draw(axes: Any, picture: Mapping[str, Any]) -> None:
    from matplotlib.colors import to_rgb

    cells = picture["cells"]
    boundary = _boundary_row(picture)
    hidden, white = to_rgb(_HIDDEN), (1.0, 1.0, 1.0)
    image = []
    for row, line in enumerate(cells):
        shown = to_rgb(_PREFILL if row < boundary else _DECODE)
        image.append([white if share is None else _mix(hidden, shown, share) for share in line])
    length = picture["length"]
    drawn = _cell_size(picture) * len(cells)  # the last cell may hang over the end
    axes.imshow(image, extent=(0, drawn, drawn, 0), interpolation="nearest")
    axes.set(xlim=(0, length), ylim=(length, 0))
    if 0 < picture["prompt_length"] < length:
        axes.axhline(picture["prompt_length"], color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("key position (tokens)")
    axes.set_ylabel("query position (tokens)")
    axes.set_title("\n".join(textwrap.fill(line, 46) for line in _title(picture)), fontsize=8)


def _mix(low: Sequence[float], high: Sequence[float], share: float) -> tuple[float, ...]:
    return tuple(a + (b - a) * share for a, b in zip(low, high, strict=True))


def _one_as_text(picture: Mapping[str, Any]) -> str:
    cells, boundary, size = picture["cells"], _boundary_row(picture), _cell_size(picture)
    lines = _title(picture)
    if size > 1:
        lines.append(f"each cell is {size} x {size} tokens")
    for row, line in enumerate(cells):
        if row == boundary and 0 < boundary < len(cells):
            lines.append("-" * (2 * len(cells)) + " decode")
        lines.append("".join("  " if share is None else _shade(share) * 2 for share in line).rstrip())
    return "\n".join(lines)


def _shade(share: float) -> str:
    """Blank only for nothing, solid only for everything."""
    if share in (0, 1):
        return _SHADES[-1] if share else _SHADES[0]
    return _SHADES[1 + min(2, int(3 * share))]


def _cell_size(picture: Mapping[str, Any]) -> int:
    """Tokens per side of a cell."""
    return -(-int(picture["length"]) // len(picture["cells"]))


def _boundary_row(picture: Mapping[str, Any]) -> int:
    """The first row of cells that is decoded from its start on."""
    return -(-int(picture["prompt_length"]) // _cell_size(picture))


def _title(picture: Mapping[str, Any]) -> list[str]:
    where = f"layers {index_runs(picture['layers'])}"
    if picture["heads"] is not None:
        where += f", heads {index_runs(picture['heads'])}"
    notes = [picture["note"]] if picture.get("note") else []
    if picture["prefill"] == picture["decode"]:
        return [where, picture["prefill"], *notes]
    return [where, f"prefill: {picture['prefill']}", f"decode: {picture['decode']}", *notes]
