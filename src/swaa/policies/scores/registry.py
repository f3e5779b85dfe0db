"""Score modifications by name: those that come with swaa, a user's, and those of installed packages.

They register when their module is imported: as a plugin, or through the entry-point group of policies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from swaa.errors import UserError, invalid, unknown
from swaa.policies.registry import load_entry_points

if TYPE_CHECKING:
    from swaa.policies.scores.base import ScoreMod

M = TypeVar("M", bound="type[ScoreMod]")

RESERVED = ("score", "layers", "heads")
"""Keys that in YAML stand beside a modification's own fields."""

_mods: dict[str, type[ScoreMod]] = {}


def register_score(mod: M) -> M:
    """Class decorator: make a score modification known by its class name to YAML, the command line and the tests.

    Raises:
        UserError: it is no subclass of ScoreMod, no frozen dataclass, has a field of a reserved name, or another class
            has its name.
    """
    from swaa.policies.scores.base import ScoreMod

    if not (isinstance(mod, type) and issubclass(mod, ScoreMod)):
        mend = "Derive it from swaa.ScoreMod."
        raise invalid("score modification", accepted="a subclass of swaa.ScoreMod", got=mod, mend=mend)
    name = mod.__name__
    options = vars(mod).get("__dataclass_params__")
    if options is None or not options.frozen:
        mend = "Put @dataclass(frozen=True, repr=False) under @register_score."
        raise invalid(f"score modification {name}", accepted="a frozen dataclass", got=mod, mend=mend)
    for reserved in RESERVED:
        if reserved in vars(mod)["__dataclass_fields__"]:
            raise UserError(
                f"score modification {name}: a field is named {reserved!r}, which in YAML means something else. "
                f"Rename the field."
            )
    present = _mods.get(name, mod)
    if (present.__module__, present.__qualname__) != (mod.__module__, mod.__qualname__):
        raise UserError(
            f"score modification {name!r} is taken by {present.__module__}.{present.__qualname__}; "
            f"{mod.__module__}.{mod.__qualname__} cannot have the name too. Rename one of the classes."
        )
    _mods[name] = mod
    return mod


def get_score(name: str) -> type[ScoreMod]:
    """The score modification of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in _mods:
        load_entry_points()
    if name not in _mods:
        raise unknown("score modification", name, _mods)
    return _mods[name]


def score_names() -> tuple[str, ...]:
    """All known names, sorted, those of installed packages among them."""
    load_entry_points()
    return tuple(sorted(_mods))
