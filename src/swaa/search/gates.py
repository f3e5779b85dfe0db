"""Soft gates: each layer, or query head, gives ``g * full + (1 - g) * base``; one backward pass has the slope of all.

Shape suffixes: B rows, L layers, H query heads (1 where a layer has one gate), Q queries, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from swaa.compiler.plan import Job, choose_kernel
from swaa.hf.listening import AttentionCall, listening
from swaa.hf.spec import PolicyOnModel, make_spec
from swaa.policies import FullAttention, SlidingWindow, bind
from swaa.search.choices import Choice
from swaa.search.probe import Probe, answer_nll


def gate_gradients(probe: Probe, *, at: int, by_head: bool) -> Tensor:
    """float64 [N, L, H]: of each item, d(mean answer NLL) / d(gate), in nats, where all gates stand at ``at``.

    Args:
        probe: model, items and base policy.
        at: 0 (all gates closed: the base policy) or 1 (all open: full attention).
        by_head: a gate for every query head; otherwise one a layer, and H is 1.

    Raises:
        UserError: the kernel that was asked for has no backward pass on this device.
    """
    restricted, pass_back = bind(SlidingWindow(1), 1, 1).layers[0], Job(2, 2, probe.model.device.type, needs_grad=True)
    choose_kernel(restricted, pass_back, probe.kernel)  # refuses now what a layer would refuse after minutes
    open_layers: Choice = probe.all_layers if at else frozenset()
    other = probe.base if at else FullAttention()
    opposite = PolicyOnModel(make_spec(other, probe.kernel, evict=False), probe.num_layers)
    gates_per_layer = probe.num_heads if by_head else 1
    found = torch.zeros(len(probe.items), probe.num_layers, gates_per_layer, dtype=torch.float64)
    with probe.under(open_layers), _frozen(probe.model):
        for batch in probe.batches:
            gates_BLH = torch.full((len(batch), probe.num_layers, gates_per_layer), float(at), requires_grad=True)
            with listening(probe.model, _Gates(gates_BLH, at, opposite)):
                nll_BA = answer_nll(probe.logits(batch), batch)
            loss = (nll_BA.sum(1) / batch.answer_mask.sum(1)).sum()  # rows are apart: each gets its own slopes
            found[list(batch.places)] = torch.autograd.grad(loss, gates_BLH)[0].double()
            probe.spend(2 * len(batch) * probe.num_layers)  # backward: twice a forward pass
    return found


class _Gates:
    """Adds ``(g - at) * (full - base)`` to what a layer gives: nothing, but with the slope of the gate.

    At 0 the slope of the full branch, and at 1 that of the base, is zero for all that comes before the layer: that
    branch needs no backward pass.
    """

    def __init__(self, gates_BLH: Tensor, at: int, opposite: PolicyOnModel) -> None:
        self._gates_BLH, self._at, self._opposite = gates_BLH, at, opposite

    def __call__(self, call: AttentionCall) -> Tensor:
        live_BQHD = call.attend()
        with torch.no_grad():
            opened = call.attend(self._opposite) - live_BQHD
        difference_BQHD = -opened if self._at else opened
        moved_BH = (self._gates_BLH[:, call.layer] - self._at).to(live_BQHD)
        return live_BQHD + moved_BH[:, None, :, None] * difference_BQHD


@contextlib.contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Inside the block no weight asks for a gradient, which would cost memory and time."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
