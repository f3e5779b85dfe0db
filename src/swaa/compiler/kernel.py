"""The kernel reading: the predicate as FlexAttention's ``mask_mod``, its parameters as tensors.

Python ints captured by a ``mask_mod`` are baked into the compiled kernel: every window size would compile anew, and
past torch's recompile limit FlexAttention runs unfused. Tensors are arguments, so one kernel serves all values.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from swaa.compiler.evaluate import check_predicates, evaluate_ahead, evaluate_phases
from swaa.compiler.layout import TokenLayout
from swaa.policies.base import Predicate
from swaa.policies.boolean import Formula
from swaa.policies.bound import LayerPolicy

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
P = TypeVar("P", bound=Predicate)


def mask_mod(layer: LayerPolicy, layout: TokenLayout) -> MaskMod:
    """``mask_mod(b, h, q_index, k_index) -> bool`` over slots, for FlexAttention and ``create_block_mask``."""
    check_predicates(layer)
    device = layout.device
    groups = [
        (_membership(heads, layer.num_heads, device), with_tensors(head.formulas, device))
        for heads, head in layer.groups
    ]
    beyond = [_formula_with_tensors(head.prefill.beyond, device) for _, head in layer.groups]
    # int64, as in the other readings: in int32 a product of positions wraps around, and the kernels would disagree
    query_positions_BQ, key_positions_BK = layout.query_positions_BQ, layout.key_positions_BK
    decodes_BQ = layout.query_decodes_BQ
    query_documents_BQ, key_documents_BK = layout.query_documents_BQ, layout.key_documents_BK
    limits_BQ = layout.query_limits_BQ if layer.looks_ahead else None
    # to look up the position of each key takes a fifth of the kernel's time on CPU
    first_key = None if layout.first_key is None else torch.tensor(layout.first_key, device=device)
    by_phase = any(decode is not None for _, (_, decode) in groups)
    tables = {len(table) for table in (query_positions_BQ, key_positions_BK, decodes_BQ)}
    per_sample = tables != {1}
    if per_sample:  # every table gets all rows, so that one index serves
        batch = layout.batch_size
        query_positions_BQ = query_positions_BQ.expand(batch, -1).contiguous()
        key_positions_BK = key_positions_BK.expand(batch, -1).contiguous()
        decodes_BQ = decodes_BQ.expand(batch, -1).contiguous()
        limits_BQ = None if limits_BQ is None else limits_BQ.expand(batch, -1).contiguous()
        if query_documents_BQ is not None and key_documents_BK is not None:
            query_documents_BQ = query_documents_BQ.expand(batch, -1).contiguous()
            key_documents_BK = key_documents_BK.expand(batch, -1).contiguous()

    def visible(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        row = b if per_sample else torch.zeros_like(b)
        q = query_positions_BQ[row, q_index]
        own: Tensor | None = None
        if first_key is not None:
            k = k_index.to(torch.int64) + first_key
        else:
            k = key_positions_BK[row, k_index]
            own = k >= 0
            if query_documents_BQ is not None and key_documents_BK is not None:
                own = own & (query_documents_BQ[row, q_index] == key_documents_BK[row, k_index])
        bound = k <= q if own is None else own & (k <= q)
        decodes = decodes_BQ[row, q_index] if by_phase else None
        seen: Tensor = bound & of_head(h, [evaluate_phases(*formulas, q, k, decodes) for _, formulas in groups])
        if limits_BQ is not None:
            limits = limits_BQ[row, q_index]
            ahead = of_head(h, [evaluate_ahead(formula, q, k, limits) for formula in beyond])
            seen = seen | (ahead if own is None else own & ahead)
        return seen

    def of_head(h: Tensor, truths: list[Any]) -> Any:
        if len(truths) == 1:
            return truths[0]
        chosen = [membership[h] & truth for (membership, _), truth in zip(groups, truths, strict=True)]
        return functools.reduce(operator.or_, chosen)

    return visible


def with_tensors(formulas: tuple[Formula, Formula | None], device: torch.device) -> tuple[Formula, Formula | None]:
    """A head's formulas with every int parameter of their predicates as a 0-d int64 tensor on ``device``."""
    prefill, decode = formulas
    return _formula_with_tensors(prefill, device), None if decode is None else _formula_with_tensors(decode, device)


def _formula_with_tensors(formula: Formula, device: torch.device) -> Formula:
    return Formula(
        tuple(
            tuple((_predicate_with_tensors(atom, device), asserted) for atom, asserted in term)
            for term in formula.terms
        )
    )


def _predicate_with_tensors(predicate: P, device: torch.device) -> P:
    with_tensors = copy.copy(predicate)  # not replace(): the fields would be validated as Python ints
    for name, value in predicate.parameters().items():
        if isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(with_tensors, name, torch.tensor(value, dtype=torch.int64, device=device))
    return with_tensors


def _membership(heads: tuple[int, ...], num_heads: int, device: torch.device) -> Tensor:
    member = torch.zeros(num_heads, dtype=torch.bool)
    member[list(heads)] = True
    return member.to(device)
