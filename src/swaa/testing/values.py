"""Checks on the policy as a value, and on what its author says of it: purity, conventions, the author's oracle."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import torch
from torch import Tensor

from swaa.compiler.interval import Interval, UnknownOperation, Verdict
from swaa.errors import UserError
from swaa.policies import AttentionPolicy, Predicate, parse_policy, policy_to_dict
from swaa.testing.diagnosis import off_by_one, pair_picture, refused
from swaa.testing.findings import Failure, Note, passed, skipped
from swaa.testing.integers import Refused
from swaa.testing.meaning import predicates
from swaa.testing.reading import Reader, sees
from swaa.testing.subject import NOT_REGISTERED, Subject

_LENGTH = 32
_COMPARE = "Return a comparison of q and k, such as q - k < 8, elementwise."
_STATE = "Keep no state: no counters, no caches that answers depend on, no random numbers without a seed of their own."


def readable(subject: Subject) -> Failure | Note:
    """Each predicate answers yes or no for each pair, by operators alone."""
    found = atoms(subject)
    for predicate in found:
        try:
            for q in range(4):
                for k in range(q + 1):
                    sees(predicate, q, k)
        except Refused as error:
            return refused(error)
        wrong = _on_tensors(predicate) or _on_intervals(predicate)
        if wrong is not None:
            return wrong
    return passed(f"{len(found)} predicates")


def _on_tensors(predicate: Predicate) -> Failure | None:
    """On index tensors it has to give a truth value for each pair, or ones that broadcast to that."""
    q, k = torch.arange(8, 13).unsqueeze(-1), torch.arange(8)
    given: Any = predicate.visible(q, k)  # type: ignore[arg-type]
    if isinstance(given, bool):
        return None
    what = f"of {len(q)} queries and {len(k)} keys as tensors"
    if not isinstance(given, Tensor) or given.dtype != torch.bool:
        kind = f"a tensor of {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
        return Failure("no predicate", f"{predicate!r} returns {kind} {what}", _COMPARE)
    try:
        given.broadcast_to(len(q), len(k))
    except RuntimeError:
        shape = list(given.shape)
        return Failure("no predicate", f"{predicate!r} returns a tensor of shape {shape} {what}", _COMPARE)
    return None


def _on_intervals(predicate: Predicate) -> Failure | None:
    """On intervals it has to give a verdict, or to use an operation that they refuse."""
    positions = Interval(torch.tensor([3]), torch.tensor([7]))
    try:
        given: Any = predicate.visible(positions, positions)
    except UnknownOperation:
        return None
    if isinstance(given, bool | Verdict):
        return None
    what = f"{predicate!r} returns {type(given).__name__} of intervals, whatever their ends are"
    return Failure("no predicate", what, _COMPARE)


def purity(subject: Subject) -> Failure | Note:
    """Asked twice, in another order, and with other instances asked in between, a predicate says the same."""
    found = atoms(subject)
    pairs = [(q, k) for q in range(_LENGTH // 2) for k in range(q + 1)]
    for predicate in found:
        before = copy.deepcopy(vars(predicate))
        first = {pair: sees(predicate, *pair) for pair in pairs}
        for how, order in (("asked again", pairs), ("asked in another order", pairs[::-1])):
            for pair in order:
                if sees(predicate, *pair) != first[pair]:
                    return _state(predicate, pair, how)
        for pair in pairs:
            for other in found:
                sees(other, *pair)
            if sees(predicate, *pair) != first[pair]:
                return _state(predicate, pair, "asked between questions to other instances")
        if vars(predicate) != before:
            return Failure("state shared between calls", f"{predicate!r} changes its own fields when asked", _STATE)
        positions = torch.arange(8)
        grids = [predicate.visible(positions[:, None], positions) for _ in range(2)]  # type: ignore[arg-type]
        if isinstance(grids[0], Tensor) and not torch.equal(*grids):
            return _state(predicate, tuple((grids[0] != grids[1]).nonzero()[0].tolist()), "asked twice on tensors")
    return passed(f"{len(pairs)} pairs, four orders")


def _state(predicate: Predicate, pair: tuple[int, ...], how: str) -> Failure:
    q, k = pair
    what = f"{predicate!r} says otherwise of query {q}, key {k} when {how}"
    return Failure("state shared between calls", what, _STATE)


def conventions(subject: Subject) -> Failure | Note:
    """A field named ``window_size`` counts the query's own token, as everywhere in swaa and transformers."""
    policy = next((one for one in subject.policies if isinstance(one, Predicate)), None)
    if policy is None or not isinstance(policy.parameters().get("window_size"), int):
        return skipped("no field named window_size")
    seen = {size: run for size in (3, 5, 6, 9) if (run := _run_of_distances(policy, size)) is not None}
    for extra, too in ((1, "long"), (-1, "short")):
        if len(seen) > 1 and all(run == size + extra for size, run in seen.items()):
            size, run = next(iter(seen.items()))
            expected, effective = _windows(policy, size)
            return Failure(
                "window off by one",
                f"window_size={size} shows {run} keys, one too {too}: a window counts the query's own token",
                "Write q - k < self.window_size.",
                pair_picture(expected, effective),
                len(expected),
            )
    return passed("window_size counts the query's own token, where it is a plain window")


def _run_of_distances(policy: Predicate, size: int) -> int | None:
    """How many keys in a row, back from itself, every late query sees; None where that is no one number."""
    try:
        other: Any = dataclasses.replace(policy, window_size=size)
    except UserError:
        return None
    runs = set()
    for q in range(20, _LENGTH):
        hidden = [distance for distance in range(q + 1) if not sees(other, q, q - distance)]
        runs.add(hidden[0] if hidden else None)
    return runs.pop() if len(runs) == 1 else None


def _windows(policy: Predicate, size: int) -> tuple[Tensor, Tensor]:
    length = size + 3
    effective = Reader().table(dataclasses.replace(policy, window_size=size), length)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    beside = effective & (distance > size)  # what else it shows, such as sinks
    return ((distance >= 0) & (distance < size)) | beside, effective


def oracle(subject: Subject) -> Failure | Note:
    """The predicate is what its author's own loop says."""
    if subject.oracle is None:
        return skipped("none given (--oracle module:function)")
    for policy in atoms(subject):
        effective = subject.reader.table(policy, _LENGTH)
        answers = [
            [(k <= q or policy.looks_ahead) and subject.oracle(policy, q, k) for k in range(_LENGTH)]
            for q in range(_LENGTH)
        ]
        expected = torch.tensor([[bool(answer) for answer in row] for row in answers])
        differ = (expected != effective).nonzero()
        if len(differ):
            tokens = int(differ.amax(-1).min()) + 1
            q, k = (expected != effective)[:tokens, :tokens].nonzero()[0].tolist()
            name = off_by_one(expected, effective) or "another mask than the oracle's"
            shown = min(_LENGTH, tokens + 2)
            return Failure(
                name,
                f"{policy!r}: query {q}, key {k} is {'seen' if effective[q, k] else 'hidden'}, and the oracle says it "
                f"should not be",
                "Compare visible with the definition at this pair; one of the two is wrong.",
                pair_picture(expected[:shown, :shown], effective[:shown, :shown]),
                tokens,
            )
    return passed(f"{_LENGTH} tokens")


def round_trip(subject: Subject) -> Failure | Note:
    """What is printed or stored makes the same policy again; equal policies are equal and hash alike."""
    if not subject.registered:
        return skipped(NOT_REGISTERED)
    compositions = [case.policy for case in [*subject.alone(), *subject.combined()]]
    for policy in compositions:
        twin = copy.deepcopy(policy)
        if twin != policy or hash(twin) != hash(policy):
            return not_a_value(policy, "a copy of it is not equal to it, or hashes otherwise")
        try:
            described = policy_to_dict(policy)
            again = {
                "its repr": parse_policy(repr(policy)),
                "its dict form": parse_policy(described),
                "its dict form through JSON": parse_policy(json.loads(json.dumps(described))),
            }
        except (UserError, TypeError) as error:  # TypeError: what JSON does not know
            return not_a_value(policy, f"what is printed or stored cannot be read back ({error})")
        for how, found in again.items():
            if found != policy:
                return not_a_value(policy, f"{how} makes {found!r}")
    return passed(f"{len(compositions)} compositions")


def not_a_value(policy: AttentionPolicy, what: str) -> Failure:
    """The failure of a policy that is no value."""
    mend = (
        "Use @dataclass(frozen=True, repr=False) with fields of ints, strings and tuples of these, all of them stored."
    )
    return Failure("no value", f"{policy!r}: {what}", mend)


def atoms(subject: Subject) -> tuple[Predicate, ...]:
    """The predicates that it is made of, each once."""
    found = [atom for case in subject.alone() for atom in predicates(case.meaning)]
    return tuple(dict.fromkeys(found))
