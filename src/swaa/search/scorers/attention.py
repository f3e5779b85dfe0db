"""Scorers that look into attention: where its mass lies, and what a soft gate on it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from swaa.errors import invalid
from swaa.reading import check_whole
from swaa.search.gates import gate_gradients
from swaa.search.lazy import lazy_ratios
from swaa.search.probe import Probe
from swaa.search.scorers.base import Scorer
from swaa.search.scorers.registry import register_scorer


@register_scorer
@dataclass(frozen=True)
class LazyRatio(Scorer):
    """1 - the share of attention mass on sinks and recent keys, at the prompt's last queries, under full attention.

    After LightTransfer (Zhang et al., arXiv 2410.13846), which has 4 sinks and 1,020 recent tokens: the layers that
    attend to little else are lazy, and may slide. It knows neither the answers nor the base policy; one pass.

    Attributes:
        num_sinks: first tokens.
        recent: recent tokens, the query's own included. Of prompts that are not much longer, it says nothing.
        last_queries: tokens at the prompt's end whose attention is measured.
    """

    name: ClassVar[str] = "lazy_ratio"

    num_sinks: int = 4
    recent: int = 128
    last_queries: int = 64

    def __post_init__(self) -> None:
        for field, minimum in (("num_sinks", 0), ("recent", 1), ("last_queries", 1)):
            check_whole(f"{type(self).__name__}.{field}", getattr(self, field), minimum=minimum)

    def score(self, probe: Probe) -> tuple[float, ...]:
        sizes = {"num_sinks": self.num_sinks, "recent": self.recent, "last_queries": self.last_queries}
        ratios_NL = probe.remembered(self.label, lambda: lazy_ratios(probe, **sizes))
        return tuple((1 - ratios_NL.mean(0)).tolist())


@dataclass(frozen=True)
class Gated(Scorer):
    """What :class:`GateGradient` and :class:`HeadGate` share.

    Attributes:
        at: where the gates stand: 0, all closed, so that a score is what opening one promises; or 1, all open, so that
            it is what closing one threatens.
    """

    at: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or self.at not in (0, 1):
            mend = "Use 0 for the base policy, 1 for full attention."
            raise invalid(f"{type(self).__name__}.at", accepted="0 or 1", got=self.at, mend=mend)

    def score(self, probe: Probe) -> tuple[float, ...]:
        slopes_NLH = probe.remembered(self.label, lambda: gate_gradients(probe, at=self.at, by_head=self.by_head))
        return tuple((-slopes_NLH.mean(0)).flatten().tolist())


@register_scorer
@dataclass(frozen=True)
class GateGradient(Gated):
    """The first-order gain of opening a soft gate on the layer, ``g * full + (1 - g) * base``: -d NLL / d g, in nats.

    One forward and one backward pass for all layers.
    """

    name: ClassVar[str] = "gate_gradient"


@register_scorer
@dataclass(frozen=True)
class HeadGate(Gated):
    """The gain of opening a soft gate on the query head, as ``gate_gradient`` has it of a layer: -d NLL / d g, in nats.

    For policies that stream some heads and not others. DuoAttention (Xiao et al., arXiv 2410.10819) trains such gates;
    here they are differentiated once.
    """

    name: ClassVar[str] = "head_gate"
    by_head: ClassVar[bool] = True
