"""HTML and SVG, safe by construction: plain text is escaped wherever it is put; only :class:`Markup` is not."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""What neither XML nor UTF-8 can hold: shown as the replacement character."""

_VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta", "wbr"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """``text`` as it may stand in an element or a quoted attribute; markup is left alone."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(readable(str(text))))


def readable(text: str) -> str:
    """``text`` with what no page can hold replaced."""
    return _CONTROLS.sub("\ufffd", text)


def element(tag: str, /, *children: object, **attributes: object) -> Markup:
    """``<tag …>children</tag>``.

    Args:
        children: markup, or anything else as escaped text; None is left out.
        attributes: ``class_`` and ``for_`` lose their underscore at the end, other underscores become hyphens. None and
            False leave an attribute out, True writes its name alone.
    """
    parts = [f"<{tag}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        hyphened = key.rstrip("_").replace("_", "-")
        parts.append(f" {hyphened}" if value is True else f' {hyphened}="{escape(value)}"')
    parts.append(">")
    if tag not in _VOID:
        parts += [escape(child) for child in children if child is not None]
        parts.append(f"</{tag}>")
    return Markup("".join(parts))


def join(*parts: object, between: str = "") -> Markup:
    """The parts one after another, with the markup ``between`` them; None is left out."""
    return Markup(between.join(escape(part) for part in parts if part is not None))


def embed(data: object) -> Markup:
    """``data`` as JSON inside a ``<script>``, which nothing in it can end; numbers that are not finite become null."""
    text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(readable(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(data: object) -> object:
    """``data`` with null for NaN and infinities, which JSON does not have: one of them would empty the whole page."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data
