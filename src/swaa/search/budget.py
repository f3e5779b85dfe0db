"""What candidates cost, predicted, and whether that is within a budget.

Ratios are over the model without a policy, on transformers' own kernel and cache: what a user has before the search,
and what winners are measured beside. So full attention's own ratio is 1, and a candidate's may be above it: calls of a
policy take time, which a tiny model does not win back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from swaa.compiler.chunking import prefill_chunk
from swaa.compiler.cost import estimate_cost
from swaa.compiler.shape import ModelShape
from swaa.compiler.timing import Machine, default_machine, predict
from swaa.config import Budget, Search
from swaa.errors import UserError
from swaa.policies import AttentionPolicy, FullAttention
from swaa.search.space import Candidate

KINDS = ("full_layers", "time_ratio", "kv_share")
"""The kinds of cost; a budget limits each by ``max_`` and its name."""


@dataclass(frozen=True)
class Costs:
    """What a policy costs, next to full attention.

    Attributes:
        full_layers: units that keep full attention.
        time_ratio: predicted time of the request over full attention's, which is 1.
        kv_share: keys and values that are kept after the prompt, over full attention's.
    """

    full_layers: int
    time_ratio: float
    kv_share: float

    @property
    def point(self) -> tuple[float, ...]:
        """All of them, in the order of ``KINDS``."""
        return tuple(float(getattr(self, kind)) for kind in KINDS)


@dataclass(frozen=True)
class CostModel:
    """What costs are predicted of.

    Attributes:
        shape: of the model.
        prompt_length, new_tokens: of the request, in tokens.
        machine: how fast it works.
        device_type: ``cpu`` or ``cuda``.
        kernel: as of a model's configuration.
        plans_chunks: is a prompt read in chunks where that is faster (``prefill_chunk_size: auto``)?
    """

    shape: ModelShape
    prompt_length: int
    new_tokens: int
    machine: Machine
    device_type: str
    kernel: str
    plans_chunks: bool = False

    @classmethod
    def of(cls, search: Search, shape: ModelShape, device_type: str) -> CostModel:
        """The request of a search on a model.

        Raises:
            UserError: the file of the machine cannot be read.
        """
        own = search.request.machine
        machine = default_machine(device_type, shape.bytes_per_value) if own is None else Machine.read(own)
        model, length = search.model, search.request_length
        plans_chunks = model.prefill_chunk_size == "auto"
        return cls(shape, length, search.request_tokens, machine, device_type, model.kernel, plans_chunks)

    def costs(self, policy: AttentionPolicy, full_units: int) -> Costs:
        """What a policy with so many full units costs."""
        if policy == FullAttention():  # nobody need run it under swaa, whose calls would be on its bill
            return Costs(full_units, 1.0, 1.0)
        length = self.prompt_length
        chunk = None
        if self.plans_chunks:
            chunk = prefill_chunk(policy, self.shape, length, self.device_type)
        predicted = predict(
            policy,
            self.shape,
            length,
            self.new_tokens,
            self.machine,
            device_type=self.device_type,
            kernel=self.kernel,
            chunk=chunk,
        )
        return Costs(full_units, predicted.request_ratio, estimate_cost(policy, self.shape, length).kv_share)

    def of_candidate(self, candidate: Candidate) -> Costs:
        """What a candidate costs."""
        return self.costs(candidate.policy, len(candidate.chosen))


def excess(budget: Budget, costs: Costs) -> float:
    """How far the costs go beyond a budget, as a share of its limits; 0 within it."""
    return max((_over(costs, kind, limit) for kind, limit in limits(budget).items()), default=0.0)


def limits(budget: Budget) -> dict[str, float]:
    """The limits that are set, by kind of cost."""
    found = {kind: getattr(budget, f"max_{kind}") for kind in KINDS}
    return {kind: limit for kind, limit in found.items() if limit is not None}


def check_met(budget: Budget, known: Mapping[str, Costs]) -> None:
    """Refuse a budget that nothing meets.

    Args:
        known: costs of what there is, by name.

    Raises:
        UserError: nothing is within the budget; the nearest is named, with what it costs.
    """
    if any(not excess(budget, costs) for costs in known.values()):
        return
    name, costs = min(known.items(), key=lambda item: excess(budget, item[1]))
    over = [kind for kind, limit in limits(budget).items() if _over(costs, kind, limit)]
    told = ", ".join(f"{kind} {_figure(getattr(costs, kind))}" for kind in over)
    mend = " and ".join(f"max_{kind} to {_figure(getattr(costs, kind), up=True)}" for kind in over)
    asked = ", ".join(f"max_{kind}: {limit:g}" for kind, limit in limits(budget).items())
    raise UserError(
        f"budget: nothing in the space meets {asked}. The nearest is {name}: {told}. "
        f"Raise {mend}, or add smaller windows or counts to the space."
    )


def _over(costs: Costs, kind: str, limit: float) -> float:
    value = float(getattr(costs, kind))
    return max(0.0, value - limit) / max(limit, 1.0 if kind == "full_layers" else 1e-9)


def _figure(value: float, *, up: bool = False) -> str:
    """Three digits after the point; rounded up, so that what is advised is enough."""
    return f"{math.ceil(value * 1000 - 1e-9) / 1000 if up else value:.3f}".rstrip("0").rstrip(".")
