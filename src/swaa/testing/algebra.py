"""Checks on what the algebra relies on: that a predicate is a value, and that what it implies is so."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from swaa.errors import UserError
from swaa.policies import FullAttention, Predicate, SinkTokens, get_policy, policy_names
from swaa.testing.diagnosis import pair_picture
from swaa.testing.findings import Failure, Note, passed
from swaa.testing.subject import Subject
from swaa.testing.values import atoms, not_a_value

_LENGTH = 160
"""Tokens on which implications are held against each other: more than the parameters of most examples."""


def value(subject: Subject) -> Failure | Note:
    """Instances are equal to their copies and to nothing else, and hash like them, always."""
    policies = [policy for policy in subject.policies if isinstance(policy, Predicate)] or atoms(subject)
    for index, policy in enumerate(policies):
        try:
            steady = hash(policy) == hash(policy)
        except TypeError as error:
            return not_a_value(policy, f"it cannot be hashed ({error})")
        twin = copy.deepcopy(policy)
        if not steady or twin != policy or hash(twin) != hash(policy):
            return not_a_value(policy, "a copy of it is not equal to it, or hashes otherwise")
        strangers = [one for one in (FullAttention(), SinkTokens(2)) if type(one) is not type(policy)]
        for other in (*policies[:index], *strangers, object()):
            if policy == other:
                return not_a_value(policy, f"it is equal to {other!r}, which is something else")
    return passed(f"{len(policies)} instances")


def implications(subject: Subject) -> Failure | Note:
    """What ``implies`` says of two predicates holds of every pair of tokens: unions are simplified by it."""
    mine = list(dict.fromkeys(near for atom in atoms(subject) for near in _neighbours(atom, _ints([atom]))))
    others = [one for one in _companions(_ints(mine)) if one not in mine]
    grids: dict[Predicate, Tensor] = {}
    count = 0
    for one, other in [*((a, b) for a in mine for b in (*mine, *others)), *((b, a) for a in mine for b in others)]:
        if one == other:
            continue
        claim = one.implies(other)
        if not isinstance(claim, bool):
            what = f"{one!r}.implies({other!r}) gives {claim!r}"
            return Failure("a wrong implication", what, "Return True or False; False where unknown.")
        if not claim:
            continue
        count += 1
        for predicate in (one, other):
            if predicate not in grids:
                grids[predicate] = _grid(predicate)
        ahead = one.looks_ahead and other.looks_ahead
        shown, shown_by_other = (grids[each] if ahead else grids[each].tril() for each in (one, other))
        lost = shown & ~shown_by_other
        if bool(lost.any()):
            return _lost(one, other, shown | shown_by_other, shown_by_other)
    return passed(f"{count} hold")


def _lost(one: Predicate, other: Predicate, union: Tensor, other_alone: Tensor) -> Failure:
    query, key = (union != other_alone).nonzero()[0].tolist()
    shown = min(_LENGTH, max(query, key) + 3)
    return Failure(
        "a wrong implication",
        f"{one!r}.implies({other!r}) is True, but query {query} sees key {key} by the first and not by the second: "
        f"their union would be simplified to the second, and lose it",
        "Return False where unknown. Where visible is changed in a subclass, implies has to be changed as well.",
        pair_picture(union[:shown, :shown], other_alone[:shown, :shown]),
        max(query, key) + 1,
    )


def _grid(predicate: Predicate) -> Tensor:
    """bool [S, S], queries down: what it shows of itself, later keys too where it looks ahead."""
    at = torch.arange(_LENGTH)
    seen: Tensor = torch.as_tensor(predicate.visible(at.unsqueeze(-1), at))  # type: ignore[arg-type]
    seen = seen.expand(_LENGTH, _LENGTH)
    return seen if predicate.looks_ahead else seen.tril()


def _ints(predicates: Iterable[Predicate]) -> list[int]:
    values = {value for one in predicates for value in one.parameters().values() if type(value) is int}
    return sorted(value for value in values if value < _LENGTH)


def _neighbours(predicate: Predicate, sizes: Iterable[int]) -> Iterator[Predicate]:
    """It, and it with each int field set to these sizes and to those beside them: where off-by-one shows."""
    yield predicate
    for name, value in predicate.parameters().items():
        for size in sorted({near for known in sizes for near in (known - 1, known, known + 1)}):
            if type(value) is int:
                try:
                    yield dataclasses.replace(predicate, **{name: size})
                except (UserError, ValueError, TypeError):
                    continue  # out of its range, or no field that can be set


def _companions(sizes: list[int]) -> Iterator[Predicate]:
    """Of each predicate of the zoo an example, in these sizes too."""
    for name in policy_names():
        kind = get_policy(name)
        if not kind.by_content and kind.__module__.startswith("swaa."):
            yield from _neighbours(kind.examples()[0], sizes[:6])
