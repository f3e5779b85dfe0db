"""Checks on masks: every way the library has to build one, against the pairs read one at a time."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch

from swaa.compiler import block_verdicts, live_keys
from swaa.compiler.interval import UnknownOperation
from swaa.policies import PHASES
from swaa.testing.diagnosis import explain
from swaa.testing.difference import Difference, differs, shrunk, side_by_side
from swaa.testing.effective import BLOCK, MASKS, Reading, blocks, dense
from swaa.testing.findings import Failure, Note, passed, warned
from swaa.testing.meaning import Place, Sizes, table
from swaa.testing.scenes import Family, chunk, expected_mask, packing, padding, step, whole
from swaa.testing.subject import Case, Subject

SMALL: tuple[tuple[Family, int], ...] = ((whole, 40), (chunk, 40), (step, 40))
MULTI_BLOCK = 136
"""Tokens of more than one of the kernels' blocks of 128."""
_ENOUGH = 3
"""Failing compositions that are shrunk; the smallest of them is reported."""


def compare(
    subject: Subject, cases: Sequence[Case], shapes: Sequence[tuple[Family, int]], readings: Mapping[str, Reading]
) -> Failure | Note:
    """Every case on every shape, by every reading; the smallest difference, if there is one."""
    found: list[tuple[Difference, Difference]] = []
    count = 0
    for case in cases:
        for family, length in shapes:
            for name, reading in readings.items():
                count += 1
                difference = differs(case, family(length), name, reading, subject.reader)
                if difference is not None:
                    found.append((shrunk(difference, family, reading, subject.reader), difference))
                    break
        if len(found) >= _ENOUGH:
            break
    if found:
        return explain(*min(found, key=lambda pair: pair[0].size), subject.reader)
    return passed(f"{count} masks")


def one_reading(name: str, subject: Subject) -> Failure | Note:
    """One kind of mask, of each instance alone and combined."""
    return compare(subject, [*subject.alone(), *subject.combined()], SMALL, {name: MASKS[name]})


def dense_masks(subject: Subject) -> Failure | Note:
    """The dense mask."""
    return one_reading("dense mask", subject)


def kernel_masks(subject: Subject) -> Failure | Note:
    """What FlexAttention is given."""
    return one_reading("mask of the kernel", subject)


def verdicts(subject: Subject) -> Failure | Note:
    """Verdicts on intervals never hide a visible pair and never show a hidden one."""
    of_pairs = functools.partial(blocks, size=(1, 1))
    results = [
        compare(subject, subject.alone(), [(whole, 20)], {"block mask of single pairs": of_pairs}),
        one_reading("block mask", subject),
        compare(subject, subject.alone(), [(whole, MULTI_BLOCK)], {"block mask": blocks}),
    ]
    return next((result for result in results if isinstance(result, Failure)), results[1])


def exactness(subject: Subject) -> Failure | Note:
    """Verdicts are not only right but sharp: no block is called partial that is empty or full."""
    scene = whole(48)
    for case in subject.alone():
        for index in range(case.sizes.layers):
            expected = expected_mask(case.meaning, scene, case.sizes, index, subject.reader)
            for heads, head in case.layer(index).groups:
                try:
                    found = block_verdicts(head, scene.layout, BLOCK)
                except UnknownOperation as reason:
                    return warned(f"{reason}: torch builds the block mask, slower, and all keys are kept")
                truth = expected[:, heads[0]].unflatten(-1, (-1, BLOCK[1])).unflatten(-3, (-1, BLOCK[0]))
                visible, full = truth.any(-1).any(-2), truth.all(-1).all(-2)
                wrong = (visible != found.visible_BMN[:, : visible.shape[1]]) | (full != found.full_BMN)
                if bool(wrong.any()):
                    _, row, column = wrong.nonzero()[0].tolist()
                    return Failure(
                        "verdict not exact",
                        f"{case.written}: block {row}, {column} of {BLOCK[0]} queries x {BLOCK[1]} keys is misjudged",
                        "Write visible with operators only, the same lines for tensors and intervals.",
                        tokens=scene.tokens,
                    )
    return passed()


def padded(subject: Subject) -> Failure | Note:
    """Padding left, right and between tokens changes nothing for the tokens."""
    return compare(subject, subject.alone(), [(padding, 24)], MASKS)


def packed(subject: Subject) -> Failure | Note:
    """Each packed document is a sequence of its own."""
    return compare(subject, subject.alone(), [(packing, 24)], MASKS)


def phases(subject: Subject) -> Failure | Note:
    """A policy in one phase holds for the queries of that phase."""
    cases = subject.scoped("phase", PHASES, Sizes())
    return compare(subject, cases, [*SMALL, (padding, 21), (packing, 21)], MASKS)


def heads(subject: Subject) -> Failure | Note:
    """A policy on some heads holds for these."""
    return compare(subject, subject.scoped("heads", [0, -1, "1::2"], Sizes(1, 2)), SMALL[:2], MASKS)


def layers(subject: Subject) -> Failure | Note:
    """A policy on some layers holds for these."""
    return compare(subject, subject.scoped("layers", [0, -1, "1::2"], Sizes(2, 1)), SMALL[:1], MASKS)


def otherwise(subject: Subject) -> Failure | Note:
    """Outside a scope holds what ``otherwise=`` says."""
    cases = [
        *subject.scoped("phase", PHASES, Sizes(), otherwise=True),
        *subject.scoped("heads", [0], Sizes(1, 2), otherwise=True),
        *subject.scoped("layers", [-1], Sizes(2, 1), otherwise=True),
    ]
    return compare(subject, cases, SMALL[:2], MASKS)


def retention(subject: Subject) -> Failure | Note:
    """No key is called dead that a query to come sees, in whatever phase."""
    length, count = 40, 0
    cases = [*subject.alone(), *subject.scoped("phase", PHASES, Sizes())]
    right = [case for case in cases if differs(case, whole(length), "dense mask", dense, subject.reader) is None]
    for case in right:
        for index in range(case.sizes.layers):
            for prompt in (None, 2 * length // 3):
                seen = _seen_later(case, index, length, prompt, subject)
                for next_position in range(1, length):
                    count += 1
                    live = live_keys(
                        case.layer(index),
                        torch.arange(next_position).unsqueeze(0),
                        torch.tensor([next_position]),
                        None if prompt is None else torch.tensor([prompt]),
                    )[0, 0]
                    dropped = seen[next_position:, :next_position].any(0) & ~live
                    if bool(dropped.any()):
                        return _dropped(case, seen, int(dropped.nonzero()[0]), next_position)
    return passed(f"{count} caches")


def _seen_later(case: Case, layer: int, length: int, prompt: int | None, subject: Subject) -> torch.Tensor:
    """bool [Q, K]: what some head of the layer sees, each query in its phase."""
    rows = []
    for phase in PHASES:
        of_heads = [
            table(case.meaning, Place(layer, head, phase, case.sizes), length, subject.reader)
            for head in range(case.sizes.heads)
        ]
        rows.append(torch.stack(of_heads).any(0))
    decodes = torch.arange(length).unsqueeze(-1) >= (0 if prompt is None else prompt)
    return torch.where(decodes, rows[1], rows[0])


def _dropped(case: Case, seen: torch.Tensor, key: int, next_position: int) -> Failure:
    query = next_position + int(seen[next_position:, key].nonzero()[0])
    short = seen[: query + 1, : query + 1]
    without = short.clone()
    without[next_position:, key] = False
    return Failure(
        "unsound verdict",
        f"{case.written}: when query {next_position} comes, key {key} is taken for dead and dropped from the cache, "
        f"and query {query} sees it",
        "Write visible with operators only, the same lines for tensors and intervals; test for no type in it.",
        side_by_side(short, without, (query, key)),
        query + 1,
    )
