"""Classes that YAML and the command line know by a name of their own: frozen dataclasses, registered by a decorator."""

from __future__ import annotations

from typing import TypeVar

from swaa.errors import UserError, invalid, unknown

T = TypeVar("T")
C = TypeVar("C", bound=type)


def add_named(classes: dict[str, type[T]], new: C, *, kind: str) -> C:
    """Add a class to those of its kind, by its ``name``.

    Args:
        classes: those there are, by name.
        new: one more; the same class may come again, as when its module is loaded anew.
        kind: what they are, for messages: ``task``.

    Raises:
        UserError: the class is no frozen dataclass, has no name, or another class has the name.
    """
    name = getattr(new, "name", "")
    params = getattr(new, "__dataclass_params__", None)
    if not name or params is None or not params.frozen:
        mend = f"Set `name: ClassVar[str]` and put @dataclass(frozen=True) under @register_{kind}."
        raise invalid(kind, accepted="a frozen dataclass with a name", got=new.__name__, mend=mend)
    present = classes.get(name)
    if present is not None and _address(present) != _address(new):
        raise UserError(
            f"{kind} name {name!r} is taken by {_address(present)}; {_address(new)} cannot have it too. "
            f"Rename one of the {kind}s."
        )
    classes[name] = new
    return new


def find_named(classes: dict[str, type[T]], name: str, *, kind: str) -> type[T]:
    """The class of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in classes:
        raise unknown(kind, name, classes)
    return classes[name]


def _address(named: type) -> str:
    return f"{named.__module__}.{named.__qualname__}"
