"""What is checked: a policy or its examples, alone and composed, each with what the composition means.

A :class:`Case` says one thing twice: as the policy that the library makes of it, and as its literal meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from swaa.errors import UserError, invalid
from swaa.policies import (
    AttentionPolicy,
    FullAttention,
    LayerPolicy,
    Predicate,
    SinkTokens,
    SlidingWindow,
    bind,
    get_policy,
    parse_policy,
    policy_names,
    policy_to_dict,
)
from swaa.testing.blame import author_line
from swaa.testing.meaning import At, Both, Either, Meaning, Not, Sizes, from_dict, predicates
from swaa.testing.reading import Oracle, Reader

_SIZES = (
    *((layers, heads) for layers in (1, 2, 3, 4) for heads in (1, 2, 3, 4)),
    (8, 8),
    (12, 12),
    (32, 9),
    (32, 32),
    (64, 64),
)


NOT_REGISTERED = "the class is not registered, so nothing can be stored (@swaa.register_policy)"
_ONE = Sizes()


@dataclass(frozen=True, eq=False)
class Case:
    """A policy, what it means, and the smallest model that has its layers and heads.

    Attributes:
        written: the composition as one would write it.
    """

    policy: AttentionPolicy
    meaning: Meaning
    sizes: Sizes
    written: str

    def layer(self, index: int) -> LayerPolicy:
        """The policy, bound to one layer."""
        return bind(self.policy, self.sizes.layers, self.sizes.heads).layers[index]

    def at(self, heads: int) -> LayerPolicy:
        """The policy of the first layer, with more heads than it needs."""
        return bind(self.policy, self.sizes.layers, heads).layers[0]


@dataclass(eq=False)
class Subject:
    """All that a check may look at.

    Attributes:
        policies: the instances, simplest first.
        kind: their class, if they are one predicate's.
        oracle: the author's own loop, for one predicate.
        flex: may FlexAttention be compiled?
        reader: what the predicates show, pair by pair.
    """

    name: str
    policies: tuple[AttentionPolicy, ...]
    kind: type[Predicate] | None = None
    oracle: Oracle | None = None
    flex: bool = True
    reader: Reader = field(default_factory=Reader)

    @property
    def by_content(self) -> bool:
        """Does what it shows depend on queries and keys?"""
        return any(_by_content(policy) for policy in self.policies)

    @property
    def registered(self) -> bool:
        """Do YAML, expressions and configs know all predicates by their names?"""
        found = {type(atom) for case in self.alone() for atom in predicates(case.meaning)}
        return all(kind.__name__ in policy_names() and get_policy(kind.__name__) is kind for kind in found)

    def alone(self) -> list[Case]:
        """Each instance by itself."""
        return [_case(policy, _meaning(policy), repr(policy)) for policy in self.policies]

    def combined(self) -> list[Case]:
        """Unions, intersections and complements, of the two simplest instances."""
        sinks, window = SinkTokens(2), SlidingWindow(5)
        cases = []
        for policy in self.policies[:2]:
            meaning, text = _meaning(policy), repr(policy)
            cases.append(_case(policy | sinks, Either((meaning, sinks)), f"({text}) | {sinks}"))
            cases.append(_case(policy & window, Both((meaning, window)), f"({text}) & {window}"))
            cases.append(_case(~policy, Not(meaning), f"~({text})"))
        return cases

    def scoped(self, keyword: str, values: Sequence[Any], sizes: Sizes, *, otherwise: bool = False) -> list[Case]:
        """The instances on some layers or heads, or in one phase; with another policy elsewhere, or full attention."""
        method = {"phase": "in_phase", "layers": "on_layers", "heads": "on_heads"}[keyword]
        cases = []
        for policy in self.policies[:2]:
            other = SlidingWindow(2) if policy != SlidingWindow(2) else SinkTokens(1)
            for value in values:
                scope: Callable[..., AttentionPolicy] = getattr(policy, method)
                scoped = scope(value, otherwise=other) if otherwise else scope(value)
                outside = other if otherwise else FullAttention()
                place: dict[str, Any] = {keyword: value}
                meaning = At(_meaning(policy), otherwise=outside, **place)
                written = f"({policy!r}).{method}({value!r}{f', otherwise={other!r}' if otherwise else ''})"
                if isinstance(policy, Predicate) or _fits(scoped, sizes):
                    cases.append(_case(scoped, meaning, written, sizes))
        return cases


def _fits(policy: AttentionPolicy, at_least: Sizes) -> bool:
    """Has some model a layer and a head for each part? A scope on a composition may leave a part without any."""
    try:
        _sizes(policy, at_least)
    except UserError:
        return False
    return True


def _by_content(policy: AttentionPolicy) -> bool:
    if isinstance(policy, Predicate):  # which perhaps no dict can have as a key
        return policy.by_content
    return any(atom.by_content for atom in predicates(_meaning(policy)))


def _meaning(policy: AttentionPolicy) -> Meaning:
    return policy if isinstance(policy, Predicate) else from_dict(policy_to_dict(policy))


def _case(policy: AttentionPolicy, meaning: Meaning, written: str, at_least: Sizes = _ONE) -> Case:
    return Case(policy, meaning, _sizes(policy, at_least), written)


def _sizes(policy: AttentionPolicy, at_least: Sizes) -> Sizes:
    """The smallest model that has all the layers and heads of the policy.

    Raises:
        UserError: no model of a usual size has; it names what is missing.
    """
    for layers, heads in _SIZES[:-1]:
        if layers >= at_least.layers and heads >= at_least.heads:
            try:
                bind(policy, layers, heads)
            except UserError:
                continue
            return Sizes(layers, heads)
    bind(policy, *_SIZES[-1])
    return Sizes(*_SIZES[-1])


def subject_of(policy: object, *, oracle: Oracle | None = None, flex: bool = True) -> Subject:
    """What a user gave, as a subject.

    Raises:
        UserError: it is no policy, no policy class, no pattern and no expression, or it has no examples.
    """
    if isinstance(policy, type) and issubclass(policy, Predicate):
        options = getattr(policy, "__dataclass_params__", None)
        if options is None or not options.frozen:
            mend = "Put @dataclass(frozen=True, repr=False) above the class."
            raise invalid(f"policy {policy.__name__}", accepted="a frozen dataclass", got=policy, mend=mend)
        examples = _examples(policy.examples, policy.__name__)
        for example in examples:
            if type(example) is not policy:
                mend = "Return instances made with cls(…)."
                raise invalid(
                    f"{policy.__name__}.examples()", accepted="instances of the class", got=example, mend=mend
                )
        return Subject(policy.__name__, examples, policy, oracle, flex)
    if callable(policy) and hasattr(policy, "examples"):  # a pattern: a function that composes a policy
        name = str(getattr(policy, "name", policy))
        return _without_oracle(Subject(name, _examples(policy.examples, name), flex=flex), oracle)
    if isinstance(policy, AttentionPolicy | str | dict):
        parsed = parse_policy(policy)
        if isinstance(parsed, Predicate):
            return Subject(repr(parsed), (parsed,), type(parsed), oracle, flex)
        return _without_oracle(Subject(repr(parsed), (parsed,), flex=flex), oracle)
    mend = "Give a class derived from swaa.Predicate, an instance, an expression or a registered pattern."
    raise invalid("policy", accepted="a policy", got=policy, mend=mend)


def _without_oracle(subject: Subject, oracle: Oracle | None) -> Subject:
    if oracle is not None:
        mend = "Give it with a predicate's class or instance."
        raise invalid("oracle", accepted="none, as this is a composition", got=oracle, mend=mend)
    return subject


def _examples(examples: Callable[[], Iterable[AttentionPolicy]], name: str) -> tuple[AttentionPolicy, ...]:
    """What ``examples`` gives, each once.

    Raises:
        UserError: it gives nothing, something else than policies, or an error.
    """
    try:
        given = list(examples())
    except UserError:
        raise
    except Exception as error:  # whatever the author's code raises
        what = f"{type(error).__name__}: {error}{author_line(error)}"
        raise UserError(f"{name}.examples(): fails with {what}. Mend it; it is a class method.") from error
    found: list[AttentionPolicy] = []
    for example in given:
        if not isinstance(example, AttentionPolicy):
            raise invalid(f"{name}.examples()", accepted="policies", got=example, mend="Return instances.")
        if not any(type(example) is type(other) and vars(example) == vars(other) for other in found):
            found.append(example)
    if not found:
        mend = "Return a few instances, the edges among them: they are what is checked and drawn."
        raise invalid(f"{name}.examples()", accepted="at least one instance", got=(), mend=mend)
    return tuple(sorted(found, key=_weight))


def _weight(policy: AttentionPolicy) -> tuple[int, str]:
    """Small parameters first."""
    numbers: list[int] = []
    if isinstance(policy, Predicate) and dataclasses.is_dataclass(policy):
        numbers = [value for value in policy.parameters().values() if isinstance(value, int)]
    return sum(numbers), repr(policy)
