"""Names for defects: what an effective mask is instead of what it should be, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from swaa.policies import FullAttention
from swaa.testing.blame import author_line
from swaa.testing.difference import Difference, side_by_side
from swaa.testing.findings import Failure
from swaa.testing.integers import BRANCH, FLOAT, OVERFLOW, SLOTS, Refused
from swaa.testing.meaning import At, Meaning, Not, predicates, rewritten
from swaa.testing.reading import Reader, overflow
from swaa.testing.scenes import Row, Scene, expected_mask

_FLIPPED = {"prefill": "decode", "decode": "prefill", None: None}

Explanation = tuple[str, str, str]
"""A defect's name, what it does, and its mend."""

_SCOPES: tuple[tuple[Explanation, Callable[[Meaning], Meaning]], ...] = (
    (
        ("phase flipped", "queries of one phase see what those of the other should", "Swap prefill and decode."),
        lambda meaning: rewritten(meaning, phase=lambda at: _FLIPPED[at.phase]),
    ),
    (
        ("head ignored", "every head sees what the chosen ones should", "Pass heads= on to super().on_heads."),
        lambda meaning: rewritten(meaning, heads=None),
    ),
    (
        ("layer ignored", "every layer sees what the chosen ones should", "Pass layers= on to super().on_layers."),
        lambda meaning: rewritten(meaning, layers=None),
    ),
    (
        ("phase ignored", "both phases see what one of them should", "Pass phase= on to super().in_phase."),
        lambda meaning: rewritten(meaning, phase=None),
    ),
    (
        (
            "wrong otherwise",
            "outside the scope is full attention",
            "Pass otherwise= on to what Predicate does.",
        ),
        lambda meaning: rewritten(meaning, otherwise=FullAttention()),
    ),
    (
        (
            "wrong otherwise",
            "outside the scope nothing is visible",
            "Outside a scope: otherwise=, or everything.",
        ),
        lambda meaning: rewritten(meaning, otherwise=Not(FullAttention())),
    ),
    (
        ("wrong otherwise", "inside and outside of the scope are swapped", "Give otherwise= to what lies outside."),
        lambda meaning: _swapped(meaning),
    ),
    (
        ("scope ignored", "outside the scope is full attention, and inside too", "Call the method of Predicate."),
        lambda _: FullAttention(),
    ),
)


def explain(difference: Difference, whole: Difference, reader: Reader) -> Failure:
    """The failure that a difference is, named by the first mistake that would lead to this very mask.

    Args:
        difference: the smallest one.
        whole: the one that it was shrunk from, which tells mistakes apart that look alike when small.
    """
    too_large = _overflow(difference) if difference.reading.startswith("block mask") else None
    if too_large is not None:
        return too_large
    name, what, mend = next(_explanations(whole, reader))
    scene = difference.scene
    seen = f"{what}. {difference.case.written}, {difference.reading}, {scene.kind}, {scene.tokens} tokens. "
    return Failure(name, f"{seen}First at {difference.where}.", mend, difference.picture(), scene.tokens)


def _overflow(difference: Difference) -> Failure | None:
    """The failure of a predicate that computes too large a number at the first pair that differs."""
    sample, _, query, key = difference.first
    q, k = difference.scene.queries[sample][query], difference.scene.keys[sample][key]
    if q and k:
        for predicate in predicates(difference.case.meaning):
            error = overflow(predicate, q.position, k.position)
            if error is not None:
                return refused(error)
    return None


def _explanations(difference: Difference, reader: Reader) -> Iterator[Explanation]:
    effective, scene, case = difference.effective, difference.scene, difference.case

    def would_be(meaning: Meaning, slots: Scene) -> bool:
        mistaken = expected_mask(meaning, slots, case.sizes, difference.layer, reader)
        return bool((mistaken == effective).all())

    extra = effective & ~difference.expected
    if bool((extra & _ahead(scene)).any()):
        yield (
            "future leak",
            "a query sees a token after it",
            "Causality is bound by the compiler: a policy must not undo it, nor a kernel drop it.",
        )
    if bool(_of(scene, lambda q, k: q is not None and k is not None).logical_not().logical_and(extra).any()):
        yield "padding is seen", "an empty slot is attended to", "Mask slots that hold no token."
    if any(None in row for row in scene.keys) and would_be(case.meaning, _by_slot(scene)):
        yield (
            "padding as sink (slots taken for positions)",
            "positions count empty slots, so padding takes the place of the first tokens",
            "Count real tokens: a policy sees logical positions, never slots.",
        )
    if scene.kind == "packed documents" and would_be(case.meaning, _one_document(scene)):
        yield "documents mixed", "a query sees another document", "Compare documents as well as positions."
    if isinstance(case.meaning, At):
        for explanation, mistake in _SCOPES:
            if would_be(mistake(case.meaning), scene):
                yield explanation
    if difference.reading.startswith("block mask"):
        kind = "hides pairs that are visible" if not bool(extra.any()) else "shows pairs that are hidden"
        yield (
            "unsound verdict",
            f"the block mask {kind}: a verdict on an interval says never or always where that is not so",
            "Write visible with operators only, the same lines for tensors and intervals; test for no type in it.",
        )
    yield (
        "another mask",
        f"the {difference.reading} is not what visible says of each pair alone",
        "Let visible depend on q and k alone, elementwise, and on fields that never change.",
    )


def off_by_one(expected: Tensor, effective: Tensor) -> str | None:
    """The name of a difference between two tables that is one token wide: at one distance, or at one key."""
    differ = (expected != effective).nonzero()
    distances = (differ[:, 0] - differ[:, 1]).unique()
    too = "long" if bool((effective & ~expected).any()) else "short"
    if len(distances) == 1 and len(differ) > 1:
        return f"window off by one: it is one token too {too} (at distance {int(distances)})"
    if len(differ[:, 1].unique()) == 1 and len(differ) > 1:
        return f"off by one key: token {int(differ[0, 1])} is {'seen' if too == 'long' else 'hidden'} and should not be"
    return None


def refused(error: Refused) -> Failure:
    """The failure that a refused operation is."""
    name, mend = {
        FLOAT: ("float index", "Use ints, and // for division: a float skips whole numbers beyond 2**24."),
        BRANCH: (
            "data-dependent branch",
            "Write it with & | ^ ~ and comparisons: one answer for each pair, and no if, and, or, min, max, all, any.",
        ),
        SLOTS: (
            "slots taken for positions",
            "Use q and k themselves, which are positions: the slots of tensors count padding as tokens, so that "
            "padding becomes a sink.",
        ),
        OVERFLOW: (
            "overflow",
            "Keep what is computed within 2**60, for positions up to 2**24 at least: index tensors wrap around, and "
            "intervals do not.",
        ),
    }.get(error.reason, ("no predicate", "Return a comparison of positions, such as q - k < 8."))
    cannot = "visible counts too far" if error.reason == OVERFLOW else "visible cannot be read pair by pair"
    return Failure(name, f"{cannot}: {error}{author_line(error)}", mend)


def raised(error: Exception, doing: str) -> Failure:
    """The failure that an exception is: the author's own error and line."""
    cause: BaseException = error.__cause__ or error
    first = str(cause).splitlines()[0] if str(cause) else "no message"
    name, mend = "an error in the policy", "Mend the line."
    if not author_line(cause):
        name, mend = "an error in swaa", "Where the message is not about the policy, report it with this output."
    if "truth value" in first.lower() or "ambiguous" in first.lower() or "data-dependent" in first.lower():
        name, mend = "data-dependent branch", "Write it with & | ^ ~ and comparisons, elementwise."
    return Failure(name, f"{doing}: {type(cause).__name__}: {first}{author_line(cause)}", mend)


def pair_picture(expected: Tensor, effective: Tensor) -> str:
    """Two tables drawn around their first difference."""
    query, key = (expected != effective).nonzero()[0].tolist()
    return side_by_side(expected, effective, (query, key))


def _swapped(meaning: Meaning) -> Meaning:
    return replace(meaning, inside=meaning.otherwise, otherwise=meaning.inside) if isinstance(meaning, At) else meaning


def _of(scene: Scene, holds: Callable[..., bool]) -> Tensor:
    """bool [B, 1, Q, K] from the slots of each pair."""
    samples = [
        [[holds(q, k) for k in keys] for q in queries] for queries, keys in zip(scene.queries, scene.keys, strict=True)
    ]
    return torch.tensor(samples).unsqueeze(1)


def _ahead(scene: Scene) -> Tensor:
    return _of(scene, lambda q, k: bool(q and k and q.document == k.document and k.position > q.position))


def _by_slot(scene: Scene) -> Scene:
    """The scene of someone who takes a slot's number for the token's position."""

    def renumbered(row: Row) -> Row:
        return tuple(replace(slot, position=place) if slot else None for place, slot in enumerate(row))

    return replace(scene, queries=tuple(map(renumbered, scene.queries)), keys=tuple(map(renumbered, scene.keys)))


def _one_document(scene: Scene) -> Scene:
    """The scene of someone who does not tell documents apart."""

    def merged(row: Row) -> Row:
        return tuple(slot and replace(slot, document=0) for slot in row)

    return replace(scene, queries=tuple(map(merged, scene.queries)), keys=tuple(map(merged, scene.keys)))
