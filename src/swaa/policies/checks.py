"""Checks on the numbers that policies and patterns take; each names the field as the user wrote it."""

from __future__ import annotations

from swaa.errors import invalid

_BEYOND = 2**31  # beyond every context, and what kernels index with


def check_int(field: str, value: object, *, at_least: int, unit: str = "tokens", mend: str = "") -> int:
    """``value`` if it is an int of at least ``at_least`` and below 2**31; True and 8.0 are none.

    Raises:
        UserError: names ``field`` (with its owner: ``SlidingWindow.window_size``), the accepted range and the value.
    """
    if isinstance(value, int) and not isinstance(value, bool) and at_least <= value < _BEYOND:
        return value
    accepted = f"an int >= {at_least} ({unit})"
    if isinstance(value, int) and value >= _BEYOND:
        accepted = f"an int from {at_least} to {_BEYOND - 1} ({unit})"
    raise invalid(field, accepted=accepted, got=value, mend=mend or f"Write for example {at_least}.")


def check_ints(
    field: str, value: object, *, at_least: int, unit: str = "tokens", ascending: bool = True, empty: bool = False
) -> tuple[int, ...]:
    """``value`` if it is a tuple of ints of at least ``at_least``, each larger than the one before.

    Args:
        ascending: False where any order will do, and the same number twice.
        empty: may it be empty?

    Raises:
        UserError: names ``field``, or the item that is wrong (``DocumentIsolation.starts[2]``).
    """
    if not isinstance(value, tuple) or not (value or empty):
        least = "" if empty else " at least one of"
        mend = f"Write for example ({at_least}, {at_least + 8}), with a comma after a single one: ({at_least},)."
        raise invalid(field, accepted=f"a tuple with{least} ints >= {at_least} ({unit})", got=value, mend=mend)
    for index, item in enumerate(value):
        place = f"{field}[{index}]"
        check_int(place, item, at_least=at_least, unit=unit)
        if ascending and index and item <= value[index - 1]:
            mend = "Sort the numbers, and write each once."
            raise invalid(place, accepted=f"an int > {value[index - 1]}, the one before", got=item, mend=mend)
    return value
