"""Policies by name: the zoo's own, a user's, and those of installed packages.

A package plugs in through the entry-point group ``swaa.policies``; each entry names a policy class, or a module that
registers some when imported.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, TypeVar

from swaa.errors import UserError, invalid, unknown

if TYPE_CHECKING:
    from swaa.policies.base import Predicate

ENTRY_POINT_GROUP = "swaa.policies"
P = TypeVar("P", bound="type[Predicate]")

_policies: dict[str, type[Predicate]] = {}
_loaded_entry_points: set[str] = set()


def register_policy(policy_class: P) -> P:
    """Class decorator: make a predicate known by its class name to YAML, the command line and the tests.

    Raises:
        UserError: the class is no frozen dataclass, or another class has the name.
    """
    name = policy_class.__name__
    options = vars(policy_class).get("__dataclass_params__")
    if options is None or not options.frozen:
        mend = "Put @dataclass(frozen=True, repr=False) under @register_policy."
        raise invalid(f"policy {name}", accepted="a frozen dataclass", got=policy_class, mend=mend)
    present = _policies.get(name)
    if present is not None and not _is_same(present, policy_class):
        raise UserError(
            f"policy name {name!r} is taken by {present.__module__}.{present.__qualname__}; "
            f"{policy_class.__module__}.{policy_class.__qualname__} cannot have it too. Rename one of the classes."
        )
    _policies[name] = policy_class
    return policy_class


def get_policy(name: str) -> type[Predicate]:
    """The policy class of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in _policies:
        load_entry_points()
    if name not in _policies:
        raise unknown("policy", name, _policies)
    return _policies[name]


def policy_names() -> tuple[str, ...]:
    """All known names, sorted, those of installed packages among them."""
    load_entry_points()
    return tuple(sorted(_policies))


def load_entry_points() -> None:
    """Import what installed packages declare under ``swaa.policies``, each once.

    Raises:
        UserError: an entry point cannot be imported or names no policy; it is named, with its package.
    """
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.value in _loaded_entry_points:
            continue
        try:
            loaded = entry.load()
        except (ImportError, AttributeError) as error:
            package = entry.dist.name if entry.dist else "an installed package"
            raise UserError(
                f"entry point {entry.name!r} of {package} cannot be loaded: {error}. Mend or uninstall the package."
            ) from error
        _loaded_entry_points.add(entry.value)
        if isinstance(loaded, type):
            register_policy(loaded)


def _is_same(one: type, other: type) -> bool:
    """The same class, perhaps defined again by a reload of its module."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
