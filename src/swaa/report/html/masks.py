"""Mask pictures as SVG: who sees whom, prompt and decoding in one picture, and which layers have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swaa.report.html.markup import Markup, element

SIDE = 160
"""CSS pixels."""
_LEVELS = 4
_SHADES = 6
"""Layers of one colour each in a strip, before colours repeat."""


def mask_svg(picture: Mapping[str, Any], name: str) -> Markup:
    """The mask: queries downwards, keys to the right; a rule where decoding begins.

    Args:
        picture: of :func:`swaa.compiler.picture.mask_pictures`.
        name: what it shows, for who cannot see it.
    """
    cells = picture["cells"]
    count = len(cells)
    tokens = -(-int(picture["length"]) // count)
    first_decoded = -(-int(picture["prompt_length"]) // tokens)
    drawn = [element("path", class_="hidden", d=_causal(cells))]
    for phase, start, stop in (("prefill", 0, first_decoded), ("decode", first_decoded, count)):
        for level in range(1, _LEVELS + 1):
            path = _runs(cells, range(start, stop), level)
            if path:
                opacity = None if level == _LEVELS else f"{0.2 + 0.8 * level / _LEVELS:.2f}"
                drawn.append(element("path", class_=phase, d=path, fill_opacity=opacity))
    if 0 < first_decoded < count:
        drawn.append(element("path", class_="boundary", d=f"M0 {first_decoded}H{count}"))
    return element(
        "svg",
        *drawn,
        class_="mask",
        viewBox=f"0 0 {count} {count}",
        width=SIDE,
        height=SIDE,
        role="img",
        aria_label=name,
        shape_rendering="crispEdges",
    )


def _causal(cells: Sequence[Sequence[float | None]]) -> str:
    """All cells that are not in the future, as one path."""
    return "".join(f"M0 {row}h{sum(share is not None for share in line)}v1H0z" for row, line in enumerate(cells))


def _runs(cells: Sequence[Sequence[float | None]], rows: range, level: int) -> str:
    """A path of the cells of a level of visibility, neighbours in a row as one rectangle."""
    path = []
    for row in rows:
        line, column = cells[row], 0
        while column < len(line):
            start = column
            while column < len(line) and _level(line[column]) == level:
                column += 1
            if column > start:
                path.append(f"M{start} {row}h{column - start}v1H{start}z")
            else:
                column += 1
    return "".join(path)


def _level(share: float | None) -> int:
    """0 only for nothing, the highest only for everything."""
    if not share:
        return 0
    return _LEVELS if share == 1 else 1 + min(_LEVELS - 2, int(share * (_LEVELS - 1)))


def layer_strip(pictures: Sequence[Mapping[str, Any]], num_layers: int) -> Markup:
    """The layers as a row of squares; layers that share a mask share a colour, and full attention has none."""
    step, size = 9, 7
    kinds = {layer: kind for kind, picture in enumerate(pictures) for layer in picture["layers"]}
    squares = []
    for layer in range(num_layers):
        picture = pictures[kinds[layer]]
        full = picture["prefill"] == picture["decode"] == "FullAttention()"
        kind = "full" if full else str(kinds[layer] % _SHADES)
        words = element("title", f"layer {layer}")
        squares.append(element("rect", words, class_=f"layer k-{kind}", x=step * layer, y=0, width=size, height=size))
    return element(
        "svg",
        *squares,
        class_="layers",
        viewBox=f"-1 -1 {step * num_layers} {size + 2}",
        width=step * num_layers,
        height=size + 2,
        aria_hidden="true",
    )
