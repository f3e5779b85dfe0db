"""Policies by name: the zoo's own, a user's, and those of installed packages.

A package plugs in through the entry-point group ``swaa.policies``; each entry names a policy class, or a module that
registers some when imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from swaa.errors import UserError, invalid, unknown
from swaa.policies.base import Predicate

ENTRY_POINT_GROUP = "swaa.policies"
P = TypeVar("P", bound="type[Predicate]")

_policies: dict[str, type[Predicate]] = {}
_loaded_entry_points: set[str] = set()


def register_policy(policy_class: P) -> P:
    """Class decorator: make a predicate known by its class name to YAML, the command line and the tests.

    Raises:
        UserError: it is no subclass of Predicate, no frozen dataclass, has a field named ``policy``, or another class
            has the name.
    """
    if not (isinstance(policy_class, type) and issubclass(policy_class, Predicate)):
        mend = "Derive the policy from swaa.Predicate."
        raise invalid("policy", accepted="a subclass of swaa.Predicate", got=policy_class, mend=mend)
    name = policy_class.__name__
    options = vars(policy_class).get("__dataclass_params__")
    if options is None or not options.frozen:
        mend = "Put @dataclass(frozen=True, repr=False) under @register_policy."
        raise invalid(f"policy {name}", accepted="a frozen dataclass", got=policy_class, mend=mend)
    if "policy" in vars(policy_class)["__dataclass_fields__"]:
        raise UserError(
            f"policy {name}: a field is named 'policy', which in YAML stands for the class. Rename the field."
        )
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
            if not isinstance(loaded, ModuleType):
                register_policy(loaded)
        except Exception as error:  # whatever an installed module does when imported
            package = entry.dist.name if entry.dist else "an installed package"
            cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}."
            raise UserError(
                f"entry point {entry.name!r} of {package} cannot be loaded: {cause} Mend or uninstall the package."
            ) from error
        _loaded_entry_points.add(entry.value)


def load_plugin(source: str) -> None:
    """Import a user's own file (``my_policy.py``) or module (``my_package.policies``); its policies register.

    The code is executed, as any Python that one runs.

    Raises:
        UserError: the file or module is not there, or importing it fails; the cause is told.
    """
    try:
        if source.endswith(".py"):
            path = Path(source).expanduser().resolve()
            if not path.is_file():
                raise UserError(f"plugin {source!r}: there is no such file. Check the path.")
            _import_file(path)
        else:
            importlib.import_module(source)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises is the user's to mend
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"plugin {source!r}: importing it fails with {reason}. Mend the code, or the name.") from error


def _import_file(path: Path) -> None:
    name = f"swaa_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being imported
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _is_same(one: type, other: type) -> bool:
    """The same class, perhaps defined again by a reload of its module."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
