"""A check on masks far from the start, where small shapes do not look: pairs at some positions up to 2**24."""

from __future__ import annotations

import torch

from swaa.compiler import TokenLayout
from swaa.policies import Predicate
from swaa.testing.diagnosis import refused
from swaa.testing.effective import MASKS
from swaa.testing.findings import Failure, Note, passed, skipped
from swaa.testing.integers import FOREIGN, Refused, Whole
from swaa.testing.reading import overflow
from swaa.testing.scenes import Scene, Slot
from swaa.testing.subject import Case, Subject

_LAST = (127, 300, 1_023, 4_099, 65_537, 1 << 20, (1 << 24) - 1)
"""The query of each scene that comes last; some, like lengths of real texts, are beside a power of two."""
_QUERIES, _FIRST, _RECENT = 8, 16, 24


def far_positions(subject: Subject) -> Failure | Note:
    """The masks of late queries: their own keys, recent ones and the first ones, as a cache may hold them."""
    known = []
    for case in subject.alone():
        predicate = case.meaning
        if isinstance(predicate, Predicate) and not _is_foreign(predicate):
            known.append((case, predicate))
    if not known:
        why = "a composition: its parts are checked by themselves, or it uses what only index tensors know"
        return skipped(why)
    for case, predicate in known:
        for last in _LAST:
            found = _differs(subject, case, predicate, _scene(last))
            if found is not None:
                return found
    return passed(f"{len(known) * len(_LAST) * len(MASKS)} masks")


def _is_foreign(predicate: Predicate) -> bool:
    """Does it use an operation of index tensors alone, such as a lookup in a table, which has an end?"""
    try:
        predicate.visible(Whole(1), Whole(0))  # type: ignore[arg-type]
    except Refused as error:
        return error.reason == FOREIGN
    return False


def _scene(last: int) -> Scene:
    """A few queries up to the last one, over the first keys and the recent ones."""
    at = torch.arange(last - _QUERIES + 1, last + 1)
    keys = torch.cat([torch.arange(_FIRST), torch.arange(last - _RECENT + 1, last + 1)])
    layout = TokenLayout(at.unsqueeze(0), keys.unsqueeze(0), torch.zeros(1, _QUERIES, dtype=torch.bool))
    rows = [tuple(Slot(position) for position in each.tolist()) for each in (at, keys)]
    return Scene("a chunk of a long text", layout, (rows[0],), (rows[1],))


def _differs(subject: Subject, case: Case, predicate: Predicate, scene: Scene) -> Failure | None:
    pairs = [[(q.position, k.position) for k in scene.keys[0] if k] for q in scene.queries[0] if q]
    expected = torch.tensor([[subject.reader.pair(predicate, *pair) for pair in row] for row in pairs])
    for name, reading in MASKS.items():
        effective = reading(case.layer(0), scene)[0, 0]
        differ = (effective != expected).nonzero()
        if len(differ):
            row, column = differ[0].tolist()
            query, key = pairs[row][column]
            too_large = overflow(predicate, query, key)
            if too_large is not None:
                return refused(too_large)
            seen = "seen and should not be" if effective[row, column] else "not seen and should be"
            return Failure(
                "unsound verdict" if name == "block mask" else "another mask",
                f"{case.written}: far from the start the {name} is not what visible says of each pair alone. First at "
                f"query {query}, key {key}: the key is {seen}",
                "Write visible with operators only, the same lines for tensors and intervals; test for no type in it.",
                tokens=query + 1,
            )
    return None
