"""A layer's attention for one layout: masks built once, shared by all layers with an equal policy."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from swaa.compiler.attention import blocksparse_attention, bucket_length, causal_attention, dense_attention
from swaa.compiler.blockrows import BlockRows
from swaa.compiler.blocks import block_mask
from swaa.compiler.blockwise import blockwise_attention
from swaa.compiler.cofactors import in_phase
from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import BLOCK_SIZES, Job, Kernel, KernelPlan, check_kernel_request, choose_kernel
from swaa.compiler.positions import TurnBack, at_cache_positions
from swaa.compiler.runs import CausalRun, attend_runs, causal_runs, hides_nothing
from swaa.compiler.scores import PlacedScores, joined_sinks
from swaa.compiler.selected_blocks import selected_block_mask
from swaa.compiler.selection import Selection
from swaa.errors import UserError
from swaa.policies.bound import LayerPolicy
from swaa.policies.piecewise import Phase
from swaa.policies.scores import LayerScores

log = logging.getLogger(__name__)
_DENSE_CELLS = 1 << 24
"""Pairs of a dense mask at a time, where every head of every sample has a mask of its own."""
_said: set[str] = set()
_uncompilable: dict[tuple[LayerPolicy, LayerScores | None], str] = {}


@dataclass(eq=False)
class AttentionProgram:
    """The compiled side of one forward pass: a layout, and the masks that layers have asked for so far.

    Layers with equal policies share one mask. Create one per forward pass (per layout).

    Attributes:
        kernel: one of :data:`swaa.compiler.plan.KERNEL_REQUESTS`.
        all_visible: the caller knows that a single query sees every key, as over an evicted cache without free slots:
            then no mask is built, and nothing is asked of the device. Of several queries it says nothing.
        selection: what a layer has chosen by content; such a layer gets a program of its own for each call.

    Raises:
        UserError: ``kernel`` is no kernel.
    """

    layout: TokenLayout
    kernel: str = "auto"
    all_visible: bool = False
    selection: Selection | None = None
    _dense: dict[LayerPolicy, Tensor | None] = field(default_factory=dict)
    _hidden: dict[LayerPolicy, Tensor] = field(default_factory=dict)
    _blocks: dict[tuple[LayerPolicy, bool], BlockMask] = field(default_factory=dict)
    _rows: dict[tuple[LayerPolicy, int, int, int], BlockRows] = field(default_factory=dict)
    _scores: dict[tuple[LayerScores, torch.dtype, int, int], PlacedScores] = field(default_factory=dict)
    _full: dict[LayerPolicy, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kernel_request(self.kernel)

    def attend(
        self,
        layer: LayerPolicy,
        query_BHQD: Tensor,
        key_BGKD: Tensor,
        value_BGKD: Tensor,
        *,
        scale: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        sink_logits_H: Tensor | None = None,
        scores: LayerScores | None = None,
        learned_sinks_H: Tensor | None = None,
        turn_back: TurnBack | None = None,
    ) -> Tensor:
        """Attention of one layer under its policy; shapes by the suffixes of :mod:`swaa.compiler.attention`.

        Args:
            softcap: the model's own, applied before ``scores``.
            sink_logits_H: the model's own, which take part beside those of ``scores``.
            scores: what else becomes of the scores of these heads.
            learned_sinks_H: the values of its learned sink logits; None for those that they begin with.
            turn_back: the model's rotation, which scores with :class:`swaa.CachePositions` need.

        Returns:
            [B, H, Q, D]. Queries that see nothing (padding among them) get zeros.
        """
        if layer.by_content and self.selection is None and self._phase is not None:
            layer = in_phase(layer, self._phase)  # which may choose nothing
        if layer.by_content and self.selection is None:
            return self._attend_by_content(
                layer,
                query_BHQD,
                key_BGKD,
                value_BGKD,
                scale=scale,
                dropout=dropout,
                softcap=softcap,
                sink_logits_H=sink_logits_H,
                scores=scores,
                learned_sinks_H=learned_sinks_H,
                turn_back=turn_back,
            )
        if scores is not None and scores.positions is not None:
            if turn_back is None:
                raise UserError(
                    "CachePositions: needs a model's rotation. Use swaa.apply_policy(model, policy, scores)."
                )
            scale = query_BHQD.shape[-1] ** -0.5 if scale is None else scale
            query_BHQD, key_BGKD = at_cache_positions(query_BHQD, key_BGKD, self.layout, scores.positions, turn_back)
        sink_logits_H = joined_sinks(scores, sink_logits_H, learned_sinks_H, query_BHQD.device)
        scores = scores if scores is not None and scores.changes_scores else None
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query_BHQD, key_BGKD, value_BGKD))
        if self.layout.query_length == 1:  # a decode step: nothing to choose, and every operation counts
            plan = KernelPlan(Kernel.DENSE, "one query")
        else:
            job = self._job(
                layer,
                device_type=query_BHQD.device.type,
                needs_grad=needs_grad,
                dropout=dropout,
                has_sink_logits=sink_logits_H is not None,
                trains_sink_logits=torch.is_grad_enabled()
                and sink_logits_H is not None
                and sink_logits_H.requires_grad,
                has_softcap=softcap is not None,
                has_scores=scores is not None,
                value_dim_differs=value_BGKD.shape[-1] != query_BHQD.shape[-1],
            )
            plan = choose_kernel(layer, job, self.kernel)
        _say_once(plan)
        kernel = plan.kernel
        if kernel is Kernel.CAUSAL:
            causal = functools.partial(causal_attention, scale=scale, dropout=dropout)
            if self.layout.is_square:
                return causal(query_BHQD, key_BGKD, value_BGKD)
            assert self._runs is not None
            return attend_runs(query_BHQD, key_BGKD, value_BGKD, self._runs, causal)
        if kernel is Kernel.FLEX and self.kernel != "flex" and (layer, scores) in _uncompilable:
            kernel = Kernel.BLOCKWISE
        if kernel is Kernel.FLEX:
            try:
                blocks = self.block_mask(layer, with_backward=needs_grad)
                return blocksparse_attention(
                    query_BHQD,
                    key_BGKD,
                    value_BGKD,
                    blocks,
                    scale=scale,
                    softcap=softcap,
                    sink_logits_H=sink_logits_H,
                    scores=self._placed(scores, torch.float32, self._bucketed),
                )
            except _compile_errors() as error:
                if self.kernel == "flex":
                    raise
                kernel = Kernel.BLOCKWISE
                _uncompilable[layer, scores] = (str(error) or type(error).__name__).splitlines()[0]
                log.warning(
                    "%s: FlexAttention does not compile (%s); attention runs blockwise on SDPA",
                    layer.describe("prefill"),
                    _uncompilable[layer, scores],
                )
        modifications: dict[str, Any] = {
            "scale": scale,
            "dropout": dropout,
            "softcap": softcap,
            "sink_logits_H": sink_logits_H,
            "scores": self._placed(scores, torch.promote_types(query_BHQD.dtype, torch.float32), self.layout),
        }
        if kernel is Kernel.BLOCKWISE:
            rows = self.block_rows(layer, query_BHQD.shape[0], query_BHQD.shape[1], key_BGKD.shape[1])
            return blockwise_attention(query_BHQD, key_BGKD, value_BGKD, rows, **modifications)
        mask = self.dense_mask(layer)
        hidden = None if mask is None else self._hidden[layer]
        return dense_attention(query_BHQD, key_BGKD, value_BGKD, mask, hidden_BHQ1=hidden, **modifications)

    @functools.cached_property
    def _phase(self) -> Phase | None:
        """The phase of all queries; None where they are in both."""
        real_BQ, decodes_BQ = self.layout.query_positions_BQ >= 0, self.layout.query_decodes_BQ
        if not bool((real_BQ & decodes_BQ).any()):
            return "prefill"
        return None if bool((real_BQ & ~decodes_BQ).any()) else "decode"

    def _attend_by_content(
        self, layer: LayerPolicy, query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, **given: Any
    ) -> Tensor:
        """What the layer chooses, then attention; some queries at a time where the mask is dense, to bound it."""
        selection = Selection.of(layer, self.layout, query_BHQD, key_BGKD)
        dense = self.kernel == "dense" or (self.kernel == "auto" and query_BHQD.device.type == "cpu")
        batch, heads, queries, _ = query_BHQD.shape
        step = max(1, _DENSE_CELLS // (batch * heads * key_BGKD.shape[2])) if dense else queries
        parts = []
        for start in range(0, queries, step):
            some = selection.queries(start, start + step)
            program = AttentionProgram(some.layout, "dense" if dense else self.kernel, selection=some)
            parts.append(program.attend(layer, query_BHQD[:, :, start : start + step], key_BGKD, value_BGKD, **given))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _job(self, layer: LayerPolicy, **facts: Any) -> Job:
        layout = self.layout
        if layer not in self._full:
            self._full[layer] = hides_nothing(layer, layout)
        is_full = self._full[layer]
        return Job(
            query_length=layout.query_length,
            key_length=layout.key_length,
            is_square=layout.is_square,
            in_runs=is_full and not layout.is_square and self._runs is not None,
            hides_nothing=is_full,
            **facts,
        )

    def _placed(self, scores: LayerScores | None, dtype: torch.dtype, layout: TokenLayout) -> PlacedScores | None:
        if scores is None:
            return None
        key = (scores, dtype, layout.query_length, layout.key_length)
        if key not in self._scores:
            self._scores[key] = PlacedScores(scores, layout, dtype)
        return self._scores[key]

    @functools.cached_property
    def _bucketed(self) -> TokenLayout:
        layout = self.layout
        return layout.pad_to(bucket_length(layout.query_length), bucket_length(layout.key_length))

    @functools.cached_property
    def _runs(self) -> tuple[CausalRun, ...] | None:
        return causal_runs(self.layout)

    def dense_mask(self, layer: LayerPolicy) -> Tensor | None:
        """The layer's dense mask [B, H, Q, K], or None where a single query sees every key."""
        if self.layout.query_length == 1 and self.all_visible:
            return None
        if layer not in self._dense:
            mask: Tensor | None = (
                dense_mask(layer, self.layout) if self.selection is None else self.selection.dense_mask()
            )
            assert mask is not None
            if self.layout.query_length == 1 and bool(mask.all()):
                mask = None
            else:
                self._hidden[layer] = ~mask.any(-1, keepdim=True)
            self._dense[layer] = mask
        return self._dense[layer]

    def block_rows(self, layer: LayerPolicy, batch_size: int, num_heads: int, num_kv_heads: int) -> BlockRows:
        """What blockwise attention needs to know of the layer's mask, over the lengths as they are."""
        key = (layer, batch_size, num_heads, num_kv_heads)
        if key not in self._rows:
            mask = self._build(layer, self.layout, BLOCK_SIZES["blockwise"])
            self._rows[key] = BlockRows.of(mask, batch_size=batch_size, num_heads=num_heads, num_kv_heads=num_kv_heads)
        return self._rows[key]

    def block_mask(self, layer: LayerPolicy, *, with_backward: bool = False) -> BlockMask:
        """The layer's block mask over bucketed lengths."""
        if (layer, with_backward) not in self._blocks:
            padded = self._bucketed
            size = BLOCK_SIZES["flex on CPU" if padded.device.type == "cpu" else "flex"]
            self._blocks[layer, with_backward] = self._build(layer, padded, size, with_backward=with_backward)
        return self._blocks[layer, with_backward]

    def _build(
        self, layer: LayerPolicy, layout: TokenLayout, block_size: tuple[int, int], *, with_backward: bool = False
    ) -> BlockMask:
        if self.selection is None:
            return block_mask(layer, layout, block_size=block_size, with_backward=with_backward)
        return selected_block_mask(self.selection, layout, block_size, with_backward=with_backward)

    def to(self, device: torch.device | str) -> AttentionProgram:
        """The same program for tensors on another device, its masks still to be built."""
        return AttentionProgram(self.layout.to(device), self.kernel, self.all_visible)


def _compile_errors() -> tuple[type[Exception], ...]:
    """What torch raises when a kernel cannot be compiled."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return (TorchDynamoException, InductorError, NotImplementedError)


def _say_once(plan: KernelPlan) -> None:
    """One log line for each reason that keeps FlexAttention from a job."""
    if plan.is_fallback and plan.reason not in _said:
        _said.add(plan.reason)
        log.warning("attention runs on the %s kernel, not on FlexAttention: %s", plan.kernel.value, plan.reason)
