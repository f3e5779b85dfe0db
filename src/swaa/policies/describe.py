"""A policy as a tree of constructors: the one source of its printed Python and of its dict form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

from swaa.policies.base import AttentionPolicy, Predicate
from swaa.policies.boolean import EVERYWHERE, NOWHERE, Formula, Term, Terms
from swaa.policies.piecewise import Behaviour, Heads, Split, causal
from swaa.policies.selector import IndexSet
from swaa.policies.zoo.full_attention import FullAttention

V = TypeVar("V", Formula, Behaviour)


@dataclass(frozen=True)
class Leaf:
    """One predicate."""

    predicate: Predicate


@dataclass(frozen=True)
class Operation:
    """``union``, ``intersection`` or ``complement`` of its parts."""

    name: str
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Scope:
    """A policy that holds where ``keyword`` (layers, phase, heads) has a value; ``otherwise`` elsewhere."""

    inside: Node
    keyword: str
    where: Any
    otherwise: Node | None = None


@dataclass(frozen=True)
class Stack:
    """Rules *(where, policy)*, first match wins; the last has ``where`` None."""

    keyword: str
    rules: tuple[tuple[Any, Node], ...]


Node = Leaf | Operation | Scope | Stack

_FULL = Leaf(FullAttention())


def tree(policy: AttentionPolicy) -> Node:
    """The constructors that make the policy, outermost first. Equal policies have equal trees."""
    return _split(policy.normal_form, "layers", _behaviour)


def to_python(policy: AttentionPolicy) -> str:
    """Python that makes the policy, given ``from swaa import *``."""
    return _python(tree(policy))


def policy_to_dict(policy: AttentionPolicy) -> dict[str, Any]:
    """The policy as dicts, lists, strings and numbers: for YAML, JSON and hashes. Equal policies, equal dicts."""
    return _mapping(tree(policy))


def predicates(policy: AttentionPolicy) -> frozenset[Predicate]:
    """The predicates that the policy is made of, full attention aside."""
    return frozenset(predicate for predicate in _leaves(tree(policy)) if predicate != _FULL.predicate)


def _leaves(node: Node) -> Iterator[Predicate]:
    match node:
        case Leaf(predicate):
            yield predicate
        case Operation(_, parts):
            yield from (predicate for part in parts for predicate in _leaves(part))
        case Scope(inside, _, _, otherwise):
            yield from _leaves(inside)
            yield from _leaves(otherwise or _FULL)
        case Stack(_, rules):
            yield from (predicate for _, policy in rules for predicate in _leaves(policy))


def formula_to_python(formula: Formula) -> str:
    """Python that makes a policy with this formula everywhere."""
    return _python(_formula(formula))


def _split(split: Split[V], keyword: str, describe: Callable[[V], Node]) -> Node:
    cells = [(where, describe(value)) for where, value in split.cells]
    if len(cells) == 1:
        return cells[0][1]
    if len(cells) > 2:
        *conditional, (_, default) = cells
        return Stack(keyword, (*((_selector(where), node) for where, node in conditional), (None, default)))
    (first, inside), (second, outside) = cells
    if inside == _FULL:
        return Scope(outside, keyword, _selector(second))
    return Scope(inside, keyword, _selector(first), None if outside == _FULL else outside)


def _behaviour(behaviour: Behaviour) -> Node:
    prefill, decode = _heads(behaviour.prefill), _heads(behaviour.decode)
    if behaviour.decode == causal(behaviour.prefill):  # they differ in what only a prompt has
        return prefill
    if prefill == _FULL:
        return Scope(decode, "phase", "decode")
    return Scope(prefill, "phase", "prefill", None if decode == _FULL else decode)


def _heads(heads: Heads) -> Node:
    return _split(heads, "heads", _formula)


def _formula(formula: Formula) -> Node:
    if formula == EVERYWHERE:
        return _FULL
    if formula == NOWHERE:
        return Operation("complement", (_FULL,))
    ahead = [_intersection(term) for term in formula.ahead]
    if ahead and _shown_by(formula.ahead) == formula:
        return _operation("union", ahead)
    return _operation("union", [_causal(term) for term in formula.terms if term not in formula.ahead] + ahead)


def _shown_by(terms: Terms) -> Formula:
    """What the terms show of earlier keys and ahead, written as a policy."""
    intersections = [reduce(Formula.__and__, [atom.formula for atom, _ in term]) for term in terms]
    return reduce(Formula.__or__, intersections)


def _causal(term: Term) -> Node:
    """A term that shows earlier keys only."""
    literals = [_literal(*literal) for literal in term]
    looks_ahead = all(asserted and predicate.looks_ahead for predicate, asserted in term)
    return _operation("intersection", [*literals, _FULL] if looks_ahead else literals)


def _intersection(term: Term) -> Node:
    return _operation("intersection", [_literal(*literal) for literal in term])


def _literal(predicate: Predicate, asserted: bool) -> Node:
    return Leaf(predicate) if asserted else Operation("complement", (Leaf(predicate),))


def _operation(name: str, parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Operation(name, tuple(parts))


def _selector(where: IndexSet) -> Any:
    return where.to_python()


def _python(node: Node) -> str:
    match node:
        case Leaf(predicate):
            return repr(predicate)
        case Operation("complement", (part,)):
            return f"~{_python(part)}"
        case Operation("intersection", parts):
            return " & ".join(map(_python, parts))
        case Operation(_, parts):
            return " | ".join(map(_python, parts))
        case Scope(inside, keyword, where, otherwise):
            text = f"({_python(inside)})" if isinstance(inside, Operation) else _python(inside)
            method = "in_phase" if keyword == "phase" else f"on_{keyword}"
            rest = "" if otherwise is None else f", otherwise={_python(otherwise)}"
            return f"{text}.{method}({where!r}{rest})"
        case Stack(keyword):
            lines = [
                f"rule({_python(policy)})" if where is None else f"rule({_python(policy)}, {keyword}={where!r})"
                for where, policy in node.rules
            ]
            return f"stack({', '.join(lines)})"


def _mapping(node: Node) -> dict[str, Any]:
    match node:
        case Leaf(predicate):
            parameters = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in predicate.parameters().items()
            }
            return {"policy": type(predicate).__name__, **parameters}
        case Operation("complement", (part,)):
            return {"complement": _mapping(part)}
        case Operation(name, parts):
            return {name: [_mapping(part) for part in parts]}
        case Scope(inside, keyword, where, otherwise):
            rest = {} if otherwise is None else {"otherwise": _mapping(otherwise)}
            return {"scope": _mapping(inside), keyword: where, **rest}
        case Stack(keyword, rules):
            return {
                "stack": [
                    {"rule": _mapping(policy)} if where is None else {"rule": _mapping(policy), keyword: where}
                    for where, policy in rules
                ]
            }
