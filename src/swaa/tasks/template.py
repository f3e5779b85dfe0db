"""Prompt templates of a user's: text with ``{field}`` where a line's field goes."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

from swaa.errors import invalid
from swaa.reading import check_text
from swaa.tasks.fields import as_text, need

MEND = "Write {field} for a field of the line, and {{ or }} for a brace itself."


@dataclass(frozen=True)
class Template:
    """Text with fields in it.

    Attributes:
        parts: literal text, and the name of the field that follows it (dotted for what is inside; None: no field).
    """

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, name: str, text: object) -> Template:
        """The template that a user wrote as the parameter ``name``.

        Raises:
            UserError: it is no text, a brace stands alone, or a field has no name or says more than its name.
        """
        written = check_text(name, text)
        try:
            parts = list(string.Formatter().parse(written))
        except ValueError as error:
            raise invalid(name, accepted=f"a template ({error})", got=written, mend=MEND) from error
        for _, field, form, conversion in parts:
            if field is not None and (not field.strip() or form or conversion):
                raise invalid(name, accepted="fields of a name alone", got=written, mend=MEND)
        return cls(tuple((literal, field) for literal, field, _, _ in parts))

    def fill(self, values: Mapping[str, object]) -> str:
        """The text with the fields of a line; numbers are written as they are."""
        return "".join(literal + (_said(values, field) if field is not None else "") for literal, field in self.parts)


def _said(values: Mapping[str, object], field: str) -> str:
    value = need(values, field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return as_text(field, value)
