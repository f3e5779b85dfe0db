"""Errors for mistakes a user can mend. Every message names the field, what is accepted, what came and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave. The command line prints its message, without a traceback."""


def invalid(field: str, *, accepted: str, got: object, mend: str) -> UserError:
    """An error about one field's value.

    Args:
        field: the field as the user wrote it, with its owner: ``SlidingWindow.window_size``.
        accepted: the accepted values, in words: ``an int >= 1``.
        got: the value that came.
        mend: what to do, as a sentence in the imperative.
    """
    return UserError(f"{field}: expected {accepted}, got {got!r}. {mend}")


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """An error about a name that is not among the ``known`` ones, with the nearest of them suggested."""
    options = sorted(known)
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    if not near:  # a different case is the commonest near miss that difflib scores low
        near = [option for option in options if option.lower() == str(name).lower()]
    mend = f"Did you mean {near[0]!r}?" if near else "Use one of these."
    return UserError(f"unknown {kind} {name!r}. {mend} Known: {', '.join(options) or 'none'}.")
