"""Choices measured a second time: one item at a time, without padding, on the attention of :mod:`hf.reference`, which
builds its masks by loops; and the tables that tests of scorers are made of."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from hf.reference import At, reference
from swaa import SinkTokens, SlidingWindow
from swaa.search.calibration import Item
from swaa.search.choices import Unit

WINDOW, SINKS = 3, 1
BASE = (SlidingWindow(WINDOW) | SinkTokens(SINKS)).in_phase("prefill")
BOTH = SlidingWindow(WINDOW) | SinkTokens(SINKS)


def items_of(*sizes: tuple[int, int], seed: int = 0, words: int = 40) -> list[Item]:
    """Random items of so many prompt and answer tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, words, (size,), generator=generator).tolist())

    return [Item(f"item-{place}", draw(p), draw(a)) for place, (p, a) in enumerate(sizes)]


def log_probs(
    model: nn.Module,
    item: Item,
    chosen: Collection[Unit],
    *,
    phases: bool = True,
    native: dict[int, object] | None = None,
) -> list[list[float]]:
    """For each answer token, the log-probability of every word."""

    def meaning(at: At) -> bool:
        full = at.layer in chosen or (at.layer, at.head) in chosen
        return full or (phases and at.decodes) or at.window(WINDOW) or at.sinks(SINKS)

    ids = [*item.ids, *item.answer_ids[:-1]]
    with reference(model, meaning, prompt=len(item.ids), native=native), torch.no_grad():  # type: ignore[arg-type]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    found = []
    for place in range(len(item.answer_ids)):
        row = logits[len(item.ids) - 1 + place].tolist()
        top = max(row)
        total = math.log(sum(math.exp(value - top) for value in row)) + top
        found.append([value - total for value in row])
    return found


def measured(model: nn.Module, item: Item, chosen: Collection[Unit], *, phases: bool = True) -> dict[str, float]:
    """The probe's metrics, spelled out."""
    rows = log_probs(model, item, chosen, phases=phases)
    full = log_probs(model, item, range(model.config.num_hidden_layers), phases=phases)  # type: ignore[union-attr, arg-type]
    nll = -sum(row[token] for row, token in zip(rows, item.answer_ids, strict=True)) / len(rows)
    kl = 0.0
    for wanted, got in zip(full, rows, strict=True):
        for one, other in zip(wanted, got, strict=True):
            kl += math.exp(one) * (one - other) / len(rows)
    exact = all(row[token] == max(row) for row, token in zip(rows, item.answer_ids, strict=True))
    return {"nll": nll, "kl": kl, "exact": float(exact)}
