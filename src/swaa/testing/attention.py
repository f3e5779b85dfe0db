"""Checks on attention itself: every kernel against a softmax over the pairs that are visible."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from swaa.compiler import AttentionProgram, TokenLayout
from swaa.compiler.plan import has_cpp_compiler
from swaa.policies import LayerPolicy
from swaa.testing.effective import attend, inputs, masked_softmax
from swaa.testing.findings import Failure, Note, passed, skipped
from swaa.testing.masks import MULTI_BLOCK, compare
from swaa.testing.scenes import Family, Scene, chunk, expected_mask, packing, padding, whole
from swaa.testing.subject import Case, Subject

_CLOSE = 1e-4
"""Largest difference of attention weights, which are at most 1."""


def attended(request: str, layer: LayerPolicy, scene: Scene) -> Tensor:
    """bool [B, H, Q, K]: the keys that get some weight from a kernel."""
    with torch.no_grad():
        return attend(layer, scene, request)[0] > 0


def _attention(subject: Subject, cases: list[Case], shapes: list[tuple[Family, int]], request: str) -> Failure | Note:
    name = f"attention of the {request} kernel"
    masks = compare(subject, cases, shapes, {name: functools.partial(attended, request)})
    if isinstance(masks, Failure):
        return masks
    for case in cases:
        for family, length in shapes:
            scene = family(length)
            for index in range(case.sizes.layers):
                with torch.no_grad():
                    weights, scores = attend(case.layer(index), scene, request)
                expected = expected_mask(case.meaning, scene, case.sizes, index, subject.reader)
                far = (weights - masked_softmax(scores, expected)).abs().max().item()
                if far > _CLOSE:
                    return Failure(
                        "wrong attention weights",
                        f"{case.written}, {name}, {scene.kind}, {length} tokens: the right keys are seen, with weights "
                        f"that are up to {far:.2g} off",
                        "Report it with this output: it is no mistake of the policy's.",
                        tokens=length,
                    )
    return passed(f"{len(cases) * len(shapes)} calls")


def dense(subject: Subject) -> Failure | Note:
    """SDPA with a dense mask."""
    return _attention(subject, subject.alone(), [(whole, 40), (chunk, 40), (padding, 21), (packing, 21)], "dense")


def blockwise(subject: Subject) -> Failure | Note:
    """SDPA block by block; the last shape has several blocks."""
    shapes: list[tuple[Family, int]] = [(whole, 40), (chunk, 40), (padding, 21), (packing, 21), (whole, MULTI_BLOCK)]
    return _attention(subject, subject.alone(), shapes, "blockwise")


def flex(subject: Subject) -> Failure | Note:
    """FlexAttention, compiled, for the simplest instance that hides something."""
    if not subject.flex:
        return skipped("not asked for")
    if not has_cpp_compiler():
        return skipped("there is no C++ compiler, which FlexAttention needs on CPU")
    shape: tuple[Family, int] = (whole, 24)
    scene = whole(24)
    for case in subject.alone():
        if bool((~expected_mask(case.meaning, scene, case.sizes, 0, subject.reader)).triu().any()):
            return _attention(subject, [case], [shape], "flex")
    return _attention(subject, subject.alone()[:1], [shape], "flex")


def causality(subject: Subject) -> Failure | Note:
    """Tokens that arrive later change nothing for those before them."""
    scene = whole(24)
    for case in subject.alone():
        for index in range(case.sizes.layers):
            expected = expected_mask(case.meaning, scene, case.sizes, index, subject.reader)
            for request in ("dense", "blockwise"):
                for cut in (1, 7, 16, 23):
                    query, moved = _moved_by_the_future(case.layer(index), scene, request, cut, expected)
                    if moved:
                        return Failure(
                            "future leak",
                            f"{case.written}, attention of the {request} kernel: query {query} (layer {index}) changes "
                            f"when the tokens from {cut} on change",
                            "Causality is bound by the compiler: a policy must not undo it, nor a kernel drop it.",
                            tokens=scene.tokens,
                        )
    return passed()


def _moved_by_the_future(
    layer: LayerPolicy, scene: Scene, request: str, cut: int, expected: Tensor
) -> tuple[int, bool]:
    """A query before ``cut`` that sees nothing from there on and yet depends on it."""
    length, size = scene.tokens, 32
    query, key, value = inputs(1, layer.num_heads, length, length, size)
    program = AttentionProgram(scene.layout, request)
    with torch.no_grad():
        before = program.attend(layer, query, key, value)
        later_key, later_value = key.clone(), value.clone()
        later_key[:, :, cut:], later_value[:, :, cut:] = 3.0, -2.0
        after = program.attend(layer, query, later_key, later_value)
    blind = ~expected[0, :, :, cut:].any(-1)
    moved = ((before - after).abs().amax(-1)[0] > _CLOSE) & blind
    moved[:, cut:] = False
    return (int(moved.any(0).nonzero()[0]), True) if bool(moved.any()) else (0, False)


def unpadded(subject: Subject) -> Failure | Note:
    """A padded sample gets the attention of the same sample without padding, to the last digit that counts."""
    scene = padding(21)
    for case in subject.alone():
        layer = case.layer(0)
        query, key, value = inputs(len(scene.keys), layer.num_heads, scene.tokens, scene.tokens, 32)
        with torch.no_grad():
            together = AttentionProgram(scene.layout, "dense").attend(layer, query, key, value)
            for sample, row in enumerate(scene.keys):
                here = torch.tensor([slot is not None for slot in row])
                prompt = sum(1 for slot in row if slot and not slot.decodes)
                layout = TokenLayout.contiguous(int(here.sum()), prompt_lengths=prompt)
                one = slice(sample, sample + 1)
                tensors = (query[one, :, here], key[one, :, here], value[one, :, here])
                alone = AttentionProgram(layout, "dense").attend(layer, *tensors)
                if bool(((together[one, :, here] - alone).abs() > _CLOSE).any()):
                    return Failure(
                        "padding changes a sample",
                        f"{case.written}: sample {sample} of {scene.kind} differs from the same tokens without padding",
                        "Let visible depend on positions alone; padding has none.",
                        tokens=scene.tokens,
                    )
    return passed()
