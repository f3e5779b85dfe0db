"""StreamingLLM's positions: the sink tokens move along with the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swaa.errors import invalid
from swaa.policies.scores.base import ScoreMod
from swaa.policies.scores.registry import register_score


@register_score
@dataclass(frozen=True, repr=False)
class CachePositions(ScoreMod):
    """Rotary positions count the slots of a cache of sinks and a window, and not the tokens of the text.

    A query at ``q`` sees a sink, ``k < num_sinks``, from position ``min(q, num_sinks + window_size - 1)``: the cache's
    last slot. All other keys keep their distance, as within a window both ways of counting agree. So no distance is
    ever larger than the cache, however long the text is. For the policy ``StreamingLLM(num_sinks, window_size)``.

    It turns the vectors before their product is taken, and so comes before every other modification, wherever in a sum
    it stands. It holds for all heads of a layer, on models whose rotation swaa knows how to turn back.

    Attributes:
        num_sinks: first tokens, at least 1.
        window_size: of the policy beside it, the query's own token included, at least 1.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453), section 3.2.
    """

    num_sinks: int
    window_size: int

    def __post_init__(self) -> None:
        for name in ("num_sinks", "window_size"):
            value: Any = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
                mend = "Write for example CachePositions(4, 256)."
                raise invalid(f"CachePositions.{name}", accepted="an int >= 1 (tokens)", got=value, mend=mend)

    @property
    def last_position(self) -> int:
        """The largest position from which a query looks at a sink."""
        return self.num_sinks + self.window_size - 1

    def modify(self, score: Any, q: Any, k: Any, head: Any) -> Any:
        return score  # the compiler turns the vectors instead

    @classmethod
    def examples(cls) -> Sequence[CachePositions]:
        return cls(4, 256), cls(1, 1)
