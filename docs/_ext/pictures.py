"""The directive ``mask``: policies, one a line, drawn by the library while the site is built.

Pictures are inline SVG with classes for colours, so that they follow the page from light to dark. GitHub, which knows
no directives, shows the policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from swaa.compiler import TokenLayout, dense_mask, live_keys
from swaa.compiler.picture import fitting_length, mask_pictures
from swaa.errors import UserError
from swaa.policies import AttentionPolicy, LayerPolicy, bind, parse_policy
from swaa.report.explain import index_runs
from swaa.report.html.markup import Markup, element, join
from swaa.report.html.masks import mask_svg

CELLS = 60
"""The most cells of a picture's side."""


class MaskDirective(SphinxDirective):
    """``mask``: see the module; the options are of all its policies.

    Options:
        length, prompt: tokens, and how many of these are the prompt (default: two thirds).
        layers, heads: of the model that the policy is drawn for; with ``heads``, one picture for each kind of head.
        most: draw so many pictures of a policy, and say how many more there are.
        padding: slots of padding on the left; positions are written along the sides.
        documents: lengths of packed documents, in place of ``length``; positions as with ``padding``.
        cache: draw which keys the cache holds after each token, in place of the mask.
    """

    has_content = True
    option_spec = {  # noqa: RUF012  # docutils reads it off the class
        "length": directives.positive_int,
        "prompt": directives.nonnegative_int,
        "layers": directives.positive_int,
        "heads": directives.positive_int,
        "most": directives.positive_int,
        "padding": directives.positive_int,
        "documents": directives.positive_int_list,
        "cache": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        try:
            drawn = [picture for line in self.content if line.strip() for picture in self._draw(parse_policy(line))]
        except UserError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", element("div", *drawn, class_="masks"), format="html")]

    def _draw(self, policy: AttentionPolicy) -> list[Markup]:
        options = self.options
        if "documents" in options or "padding" in options:
            return [
                slots_figure(policy, options.get("length", 12), options.get("padding", 0), options.get("documents"))
            ]
        length = options.get("length") or fitting_length(policy)
        prompt = options.get("prompt", length * 2 // 3)
        if "cache" in options:
            return [cache_figure(policy, length, prompt)]
        layers, heads = options.get("layers", 1), options.get("heads", 1)
        figures = mask_figures(policy, length, prompt, num_layers=layers, num_heads=heads)
        most = options.get("most", len(figures))
        if len(figures) <= most:
            return figures
        return [
            *figures[: most - 1],
            element("p", f"… and {len(figures) - most + 1} more masks on other layers or heads"),
        ]


def mask_figures(
    policy: AttentionPolicy, length: int, prompt_length: int, *, num_layers: int = 1, num_heads: int = 1
) -> list[Markup]:
    """One figure for each distinct effective mask, with its place and the policy as captions."""
    pictures = mask_pictures(
        policy,
        num_layers=num_layers,
        num_heads=num_heads,
        length=length,
        prompt_length=prompt_length,
        resolution=CELLS,
    )
    return [_figure(mask_svg(picture, _name(picture)), *_captions(picture, num_layers)) for picture in pictures]


def _captions(picture: Mapping[str, Any], num_layers: int) -> list[Markup]:
    where = [f"layers {index_runs(picture['layers'])}"] if len(picture["layers"]) < num_layers else []
    if picture["heads"] is not None:
        where.append(f"heads {index_runs(picture['heads'])}")
    place = [element("span", ", ".join(where))] if where else []
    if picture["prefill"] == picture["decode"]:
        return [*place, code(picture["prefill"])]
    phases = (join(element("span", f"{phase} "), code(picture[phase])) for phase in ("prefill", "decode"))
    return [*place, *phases]


def _name(picture: Mapping[str, Any]) -> str:
    return f"Mask of {picture['prefill']} while prefilling and {picture['decode']} while decoding"


def slots_figure(policy: AttentionPolicy, length: int, padding: int, documents: Sequence[int] | None) -> Markup:
    """The mask over slots, with the logical position of each slot along the sides; padding has none."""
    if documents:
        positions = torch.cat([torch.arange(size) for size in documents])
        layout = TokenLayout.packed(positions.unsqueeze(0))
    else:
        real = torch.arange(padding + length) >= padding
        layout = TokenLayout.padded(real.unsqueeze(0))
    mask = dense_mask(_layer(policy), layout)[0, 0]
    cells = _picture(mask, len(mask))
    for row, position in zip(cells["cells"], layout.query_positions_BQ[0].tolist(), strict=True):
        if position < 0:
            row[:] = [None] * len(row)
    marks = [str(at) if at >= 0 else "·" for at in layout.key_positions_BK[0].tolist()]
    svg = mask_svg(cells, f"Mask of {policy!r} over slots at positions {' '.join(marks)}")
    count = len(marks)
    top = [element("span", mark) for mark in marks]
    grid = element(
        "div",
        element("div", *top, class_="along", style=f"--count: {count}"),
        element("div", *top, class_="down", style=f"--count: {count}"),
        svg,
        class_="slots",
    )
    return _figure(grid, code(repr(policy)))


def cache_figure(policy: AttentionPolicy, length: int, prompt_length: int) -> Markup:
    """Which keys the cache has to hold: a row a token that was read, a column a key."""
    layer = _layer(policy)
    held = [
        live_keys(layer, torch.arange(length)[None], torch.tensor([read]), torch.tensor([prompt_length]))[0, 0]
        for read in range(1, length + 1)
    ]
    picture = _picture(torch.stack(held), prompt_length)
    return _figure(mask_svg(picture, f"Keys held under {policy!r}"), code(repr(policy)))


def _layer(policy: AttentionPolicy) -> LayerPolicy:
    return bind(policy, 1, 1).layers[0]


def _picture(grid: torch.Tensor, prompt_length: int) -> dict[str, Any]:
    """What :func:`mask_svg` draws, of a square grid of truth values."""
    cells = [
        [float(cell) if column <= row else None for column, cell in enumerate(line)]
        for row, line in enumerate(grid.tolist())
    ]
    return {"cells": cells, "length": len(cells), "prompt_length": prompt_length}


def code(text: str) -> Markup:
    """A policy as Python, which may be broken before a dot."""
    return element("code", join(*text.split(")."), between=")<wbr>."))


def _figure(picture: Markup, *captions: Markup) -> Markup:
    lines = (element("div", caption) for caption in captions)
    return element("figure", picture, element("figcaption", *lines))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("mask", MaskDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
