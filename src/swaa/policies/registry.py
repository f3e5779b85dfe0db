"""Policies and patterns by name: the zoo's own, a user's, and those of installed packages.

A *policy* is a class of predicates; a *pattern* is a function that composes policies into one. Expressions and YAML
call both by name and in the same way; a pattern is printed and stored as what it comes to.

A package plugs in through the entry-point group ``swaa.policies``; each entry names a policy class, a pattern, or a
module that registers some when imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from swaa.errors import UserError, invalid, unknown
from swaa.policies.base import AttentionPolicy, Predicate

ENTRY_POINT_GROUP = "swaa.policies"
P = TypeVar("P", bound="type[Predicate]")
F = TypeVar("F", bound="Callable[..., AttentionPolicy]")

_policies: dict[str, type[Predicate]] = {}
_patterns: dict[str, Pattern] = {}
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
    _refuse_namesake(policy_class)
    _policies[name] = policy_class
    return policy_class


@dataclass(frozen=True)
class Pattern:
    """A function that composes policies, known by name.

    Attributes:
        calls: the arguments of the examples, by name.
    """

    function: Callable[..., AttentionPolicy]
    calls: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """What expressions and YAML call."""
        return self.function.__name__

    def __call__(self, *values: Any, **named: Any) -> AttentionPolicy:
        return self.function(*values, **named)

    def examples(self) -> tuple[AttentionPolicy, ...]:
        """What a few calls come to: tests, docs and drawings are made from these."""
        return tuple(self.function(**call) for call in self.calls)


def register_pattern(*, examples: Sequence[tuple[Any, ...]]) -> Callable[[F], F]:
    """Function decorator: make a function that returns a policy known by its name to YAML and the command line.

    Args:
        examples: the arguments of a few calls, each a tuple of positional ones.

    Raises:
        UserError: it is no function, has no example, has a parameter named ``policy``, an example does not fit its
            parameters, or something else has the name.
    """

    def register(function: F) -> F:
        if not inspect.isfunction(function):
            mend = "Put @register_pattern(examples=…) above a function that returns a policy."
            raise invalid("pattern", accepted="a function", got=function, mend=mend)
        signature, name = inspect.signature(function), function.__name__
        if "policy" in signature.parameters:
            raise UserError(
                f"pattern {name}: a parameter is named 'policy', which in YAML stands for the pattern. Rename it."
            )
        if not examples:
            raise UserError(f"pattern {name}: it has no examples. Give the arguments of one call at least.")
        try:
            calls = tuple(signature.bind(*call).arguments for call in examples)
        except TypeError as error:
            raise UserError(f"pattern {name}: an example does not fit its parameters ({error}). Mend it.") from None
        _refuse_namesake(function)
        _patterns[name] = Pattern(function, calls)
        return function

    return register


def _refuse_namesake(new: type | Callable[..., Any]) -> None:
    """Refuse a policy or pattern whose name another one has."""
    pattern = _patterns.get(new.__name__)
    present = _policies.get(new.__name__) if pattern is None else pattern.function
    if present is not None and not _is_same(present, new):
        raise UserError(
            f"policy name {new.__name__!r} is taken by {present.__module__}.{present.__qualname__}; "
            f"{new.__module__}.{new.__qualname__} cannot have it too. Rename one of them."
        )


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


def get_pattern(name: str) -> Pattern:
    """The pattern of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in _patterns:
        load_entry_points()
    if name not in _patterns:
        raise unknown("pattern", name, _patterns)
    return _patterns[name]


def pattern_names() -> tuple[str, ...]:
    """All known patterns, sorted, those of installed packages among them."""
    load_entry_points()
    return tuple(sorted(_patterns))


def find(name: str, *, others: Iterable[str] = ()) -> Callable[..., AttentionPolicy]:
    """The policy class, or the function of the pattern, of that name; ``others`` are names to suggest besides.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in _policies and name not in _patterns:  # the zoo's own names need no installed package
        load_entry_points()
    if name in _policies:
        return _policies[name]
    if name in _patterns:
        return _patterns[name].function
    raise unknown_policy(name, others=others)


def unknown_policy(name: str, *, others: Iterable[str] = ()) -> UserError:
    """An error about a name that no policy and no pattern has, which may be in a file that nobody loaded."""
    problem = unknown("policy", name, (*_policies, *_patterns, *others))
    return UserError(
        f"{problem} If it is in a file of yours, name the file: --plugin FILE, or plugins: [FILE] in YAML."
    )


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
            if not isinstance(loaded, ModuleType) and all(loaded is not known.function for known in _patterns.values()):
                register_policy(loaded)
        except Exception as error:  # whatever an installed module does when imported
            package = entry.dist.name if entry.dist else "an installed package"
            cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}."
            raise UserError(
                f"entry point {entry.name!r} of {package} cannot be loaded: {cause} Mend or uninstall the package."
            ) from error
        _loaded_entry_points.add(entry.value)


def load_plugin(source: str) -> ModuleType:
    """Import a user's own file (``my_policy.py``) or module (``my_package.policies``); its policies register.

    The code is executed, as any Python that one runs.

    Returns:
        The module, imported once however often it is asked for.

    Raises:
        UserError: the file or module is not there, or importing it fails; the cause is told.
    """
    try:
        if source.endswith(".py"):
            path = Path(source).expanduser().resolve()
            if not path.is_file():
                raise UserError(f"plugin {source!r}: there is no such file. Check the path.")
            return _import_file(path)
        return importlib.import_module(source)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises is the user's to mend
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"plugin {source!r}: importing it fails with {reason}. Mend the code, or the name.") from error


def _import_file(path: Path) -> ModuleType:
    name = f"swaa_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
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
    return module


def _is_same(one: type | Callable[..., Any], other: type | Callable[..., Any]) -> bool:
    """The same class or function, perhaps defined again by a reload of its module."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


@dataclass(frozen=True)
class Example:
    """One call of a policy or pattern, written in the three ways there are.

    Attributes:
        text: the expression: ``StreamingLLM(4, 256)``.
        mapping: what YAML has: ``{"policy": "StreamingLLM", "num_sinks": 4, "window_size": 256}``.
        policy: what it comes to.
    """

    text: str
    mapping: Mapping[str, Any]
    policy: AttentionPolicy


@dataclass(frozen=True)
class ZooEntry:
    """What docs and listings say of a policy or pattern; all of it is read from its code and docstring.

    Attributes:
        kind: ``policy`` or ``pattern``.
        summary: one sentence without full stop, in Markdown.
        formula: when a pair is visible; of a pattern, what it comes to. Empty where the docstring gives none.
        papers: arXiv identifiers.
        parameters: names with their defaults as Python, None where there is none.
    """

    name: str
    kind: str
    summary: str
    formula: str
    papers: tuple[str, ...]
    parameters: tuple[tuple[str, str | None], ...]
    examples: tuple[Example, ...]

    @property
    def signature(self) -> str:
        """How it is called: ``StreamingLLM(num_sinks, window_size, positions='text')``."""
        words = [name if default is None else f"{name}={default}" for name, default in self.parameters]
        return f"{self.name}({', '.join(words)})"


def zoo_entries() -> tuple[ZooEntry, ...]:
    """One entry for each policy and pattern that is known, by name.

    Raises:
        UserError: the examples of one fail; it is named.
    """
    return tuple(_entry_of(name) for name in sorted((*policy_names(), *pattern_names())))


def _entry_of(name: str) -> ZooEntry:
    try:
        if name in _patterns:
            return _entry(name, "pattern", _patterns[name].calls)
        return _entry(name, "policy", [example.parameters() for example in _policies[name].examples()])
    except Exception as error:  # whatever the code of a user's examples does
        raise UserError(f"policy {name}: its examples fail with {type(error).__name__}: {error}. Mend them.") from error


def _entry(name: str, kind: str, calls: Sequence[Mapping[str, Any]]) -> ZooEntry:
    function = find(name)
    parameters = inspect.signature(function).parameters.values()
    documented = " ".join((inspect.getdoc(function) or "").split())
    summary = re.split(r": (?:visible iff|comes to) ``|\.(?: |$)", documented, maxsplit=1)[0]
    formula = re.search(r"(?:visible iff|comes to) ``(.+?)``", documented)
    return ZooEntry(
        name,
        kind,
        summary.replace("``", "`"),
        formula[1] if formula else "",
        tuple(dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", documented))),
        tuple((word.name, None if word.default is word.empty else repr(word.default)) for word in parameters),
        tuple(Example(_call_text(name, call), {"policy": name, **_as_lists(call)}, function(**call)) for call in calls),
    )


def _call_text(name: str, call: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(map(repr, call.values()))})"


def _as_lists(value: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value
