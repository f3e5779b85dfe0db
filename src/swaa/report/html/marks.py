"""The mark of a row all over the page: colour for its family, shape for the way of asking, filled if tuned."""

from __future__ import annotations

from swaa.report.html.figures import Entry
from swaa.report.html.markup import Markup, element

_SHAPES = {
    "direct": "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0z",
    "chain_of_thought": "M0 -6.6L6.4 4.8H-6.4z",
    "thinking": "M-5 -5H5V5H-5z",
}
SHAPE_WORDS = {"direct": "asked directly", "chain_of_thought": "chain of thought", "thinking": "native thinking"}


def mark(prompting: str, *, filled: bool, x: float = 0, y: float = 0) -> Markup:
    """The shape at a place of an SVG; its colour is the surrounding element's."""
    place = f"translate({x:.1f} {y:.1f})" if x or y else None
    shape = _SHAPES.get(prompting, _SHAPES["direct"])
    return element("path", class_="mark filled" if filled else "mark", d=shape, transform=place)


def glyph(prompting: str, family: str, *, filled: bool) -> Markup:
    """The mark as a picture of its own, for text."""
    drawn = mark(prompting, filled=filled)
    return element(
        "svg", drawn, class_=f"glyph f-{family}", viewBox="-9 -9 18 18", width=16, height=16, aria_hidden="true"
    )


def glyph_of(entry: Entry) -> Markup:
    """The mark of a row, for text."""
    return glyph(entry.info.prompting, entry.family, filled=entry.tuned)


def described(entry: Entry) -> str:
    """How a row differs from the model as it is, asked directly; empty where it does not."""
    prompting = entry.info.prompting
    asked = [] if prompting == "direct" else [SHAPE_WORDS.get(prompting, prompting)]
    return ", ".join([*asked, "fine-tuned"] if entry.tuned else asked)
