"""Checks on policies that choose by content: attention against a dense evaluation that asks ``select`` query by query.

Shape suffixes: B samples, H query heads, Q queries, K keys, N blocks, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swaa.policies.content import ContentPolicy
from swaa.testing.effective import attend, inputs, masked_softmax
from swaa.testing.findings import Failure, Note, passed, skipped
from swaa.testing.scenes import Family, Row, chunk, packing, padding, whole
from swaa.testing.subject import Subject

_CLOSE = 1e-4


def dense(subject: Subject) -> Failure | Note:
    """Attention of the dense kernel."""
    return _attention(subject, "dense", [(whole, 40), (chunk, 40)])


def blockwise(subject: Subject) -> Failure | Note:
    """Attention of the blockwise kernel."""
    return _attention(subject, "blockwise", [(whole, 40), (chunk, 40)])


def padded(subject: Subject) -> Failure | Note:
    """Padding is in no block."""
    return _attention(subject, "dense", [(padding, 30)])


def packed(subject: Subject) -> Failure | Note:
    """Blocks of a packed document are its own."""
    return _attention(subject, "dense", [(packing, 30)])


def _attention(subject: Subject, request: str, shapes: list[tuple[Family, int]]) -> Failure | Note:
    count = 0
    for case in subject.alone():
        policy = case.meaning
        if not isinstance(policy, ContentPolicy):
            continue
        for family, length in shapes:
            count += 1
            scene, heads = family(length), 2
            layer = case.at(heads)
            with torch.no_grad():
                weights, scores = attend(layer, scene, request)
                size = max(16, 1 << (length - 1).bit_length())
                query, key, _ = inputs(len(scene.keys), heads, len(scene.queries[0]), length, size)
                rows = zip(scene.queries, scene.keys, query, key, strict=True)
                mask = torch.stack([_chosen(policy, *row) for row in rows])
            far = (weights - masked_softmax(scores, mask)).abs().amax(-1) > _CLOSE
            if bool(far.any()):
                sample, head, at = far.nonzero()[0].tolist()
                return Failure(
                    "another selection",
                    f"{policy!r}, {request} kernel, {scene.kind}, {length} tokens: query slot {at} of sample {sample} "
                    f"(head {head}) sees other blocks than select gives for this query alone",
                    "Let a query's choice depend on its own vector and its candidates alone, not on other queries.",
                    tokens=length,
                )
    return passed(f"{count} calls") if count else skipped("a composition: its parts are checked by themselves")


def _chosen(policy: ContentPolicy, queries: Row, keys: Row, query_HQD: Tensor, key_1KD: Tensor) -> Tensor:
    """bool [H, Q, K] for one sample: each query's own block, and those that ``select`` gives for it alone."""
    heads, size = len(query_HQD), policy.block_size
    mask = torch.zeros(heads, len(queries), len(keys), dtype=torch.bool)
    for at, slot in enumerate(queries):
        if slot is None:
            continue
        mine = {key.position: place for place, key in enumerate(keys) if key and key.document == slot.document}
        own = slot.position // size
        for position in range(own * size, slot.position + 1):
            mask[:, at, mine[position]] = True
        if not own:
            continue
        members = [[mine[block * size + inside] for inside in range(size)] for block in range(own)]
        means_1ND = torch.stack([key_1KD[:, block].mean(1) for block in members], 1)
        candidates = torch.ones(1, heads, 1, own, dtype=torch.bool)
        picked = policy.select(query_HQD[None, :, at : at + 1], means_1ND[None].expand(1, heads, -1, -1), candidates)
        for head, block in picked[0, :, 0].nonzero().tolist():
            mask[head, at, members[block]] = True
    return mask
