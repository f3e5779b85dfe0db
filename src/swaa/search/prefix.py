"""Shared prefixes: the hidden states of a reference choice, from which passes under similar choices begin.

Shapes: B rows, S slots, E hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from swaa.hf.layers import beginning_after, ending_after, keeping_outputs
from swaa.search.calibration import ItemBatch
from swaa.search.choices import Choice, first_difference


class KeptStates:
    """What layers give under a reference choice, for each batch, on the CPU.

    Where all of them do not fit into the memory allowed, every second layer's, or every third's, and so on, are kept.

    Args:
        layers: the decoder's; None where they cannot be told, and nothing is kept.
        batches: what runs.
        bytes_per_token: of a hidden state.
        memory: bytes that may be kept.
    """

    def __init__(
        self, layers: nn.ModuleList | None, batches: Sequence[ItemBatch], *, bytes_per_token: int, memory: int
    ) -> None:
        self.reference: Choice | None = None
        self._layers = layers
        self._outputs: list[dict[int, Any]] = [{} for _ in batches]
        each = sum(batch.input_ids.numel() for batch in batches) * bytes_per_token
        count = 1 if layers is None else len(layers)
        fit = min(count - 1, memory // max(1, each))  # nothing begins after the last layer
        stride = -(-(count - 1) // fit) if fit > 0 else count
        self.kept_layers = tuple(range(stride - 1, count - 1, stride))
        """The layers whose outputs are kept."""

    def begin(self, chosen: Choice) -> int:
        """The first layer that has to be computed for a choice; 0 for all of them."""
        if self.reference is None:
            return 0
        below = first_difference(self.reference, chosen)
        usable = [layer + 1 for layer in self.kept_layers if below is None or layer < below]
        return max(usable, default=0)

    def sharing(self, batch: int, first: int) -> AbstractContextManager[None]:
        """Inside the block, the model computes the layers from ``first`` on alone, for this batch."""
        if first == 0:
            return contextlib.nullcontext()
        assert self._layers is not None
        return beginning_after(self._layers, first - 1, self._outputs[batch][first - 1])

    def keeping(self, batch: int, first: int) -> AbstractContextManager[None]:
        """Inside the block, what the kept layers from ``first`` on give is kept, in place of what was."""
        if self._layers is None:
            return contextlib.nullcontext()
        which = [layer for layer in self.kept_layers if layer >= first]
        return keeping_outputs(self._layers, which, self._outputs[batch])

    def gives_again(self, batch: int, layer: int, until: int, run: Callable[[], object]) -> bool:
        """Does a pass that begins after a kept layer come to what is kept of a later one?

        Args:
            batch: its place.
            layer, until: kept layers; those in between, and ``until``, are computed.
            run: makes the pass.
        """
        assert self._layers is not None
        found: list[Any] = []
        with self.sharing(batch, layer + 1), ending_after(self._layers, until, found):
            run()
        wanted = self._outputs[batch][until]
        pairs = zip(_tensors(found[0]), _tensors(wanted), strict=True)
        return all(is_close(one, other) for one, other in pairs)

    def forget(self) -> None:
        """Keep nothing, now and later."""
        self.reference, self.kept_layers = None, ()
        self._outputs = [{} for _ in self._outputs]


def is_close(one: Tensor, other: Tensor) -> bool:
    """Are they the same, but for the order of sums?"""
    return torch.allclose(one, other, atol=1e-3 * float(other.abs().max()), rtol=0.0)


def _tensors(output: Any) -> list[Tensor]:
    """Those that a layer gives."""
    return [one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, Tensor)]
