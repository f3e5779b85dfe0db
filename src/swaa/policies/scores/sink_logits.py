"""Sink logits: a share of attention that goes to no key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swaa.errors import UserError, invalid
from swaa.policies.scores.base import ScoreMod, is_number
from swaa.policies.scores.registry import register_score


@register_score
@dataclass(frozen=True, repr=False)
class SinkLogits(ScoreMod):
    """The softmax gets one more logit, which carries no value: a query can attend to nothing.

    ``weight[k] = exp(score[k]) / (exp(logit) + sum of exp(score))``. No score changes, so it does not matter where in
    a sum of modifications it stands: the logit takes part after all of them. Logits of several sinks on one head, the
    model's own among them, all take part. Not to be mixed up with :class:`~swaa.SinkTokens`, which are real tokens.

    With logit 0 this is the softmax with one more in its denominator (Evan Miller, "Attention Is Off By One", 2023);
    with a learned logit for each head it is what gpt-oss has (OpenAI, arXiv 2508.10925). See also Xiao et al.,
    "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453, section 3.3.

    Attributes:
        logits: one for all heads, or one for each query head of the model.
        learned: in a model, each attention layer that it holds in gets a parameter ``swaa_sink_logits`` [H], which
            begins with these values, is trained with the others, and is saved with them.
    """

    logits: float | tuple[float, ...] = 0.0
    learned: bool = False

    def __post_init__(self) -> None:
        value: Any = self.logits
        if not isinstance(self.learned, bool):
            raise invalid("SinkLogits.learned", accepted="True or False", got=self.learned, mend="Write learned=True.")
        if is_number(value):
            object.__setattr__(self, "logits", float(value))
        elif isinstance(value, tuple | list) and value and all(map(is_number, value)):
            object.__setattr__(self, "logits", tuple(map(float, value)))
        else:
            accepted = "a finite number, or one for each query head"
            raise invalid("SinkLogits.logits", accepted=accepted, got=value, mend="Write for example SinkLogits(0.0).")

    def modify(self, score: Any, q: Any, k: Any, head: Any) -> Any:
        return score

    def for_heads(self, num_heads: int) -> SinkLogits:
        if isinstance(self.logits, tuple) and len(self.logits) != num_heads:
            raise UserError(
                f"SinkLogits.logits: expected {num_heads} of them, one for each query head of this model, got "
                f"{len(self.logits)}. Give one number for all heads, or {num_heads}."
            )
        return self

    def of_head(self, head: int) -> float:
        """The logit of a head of the model."""
        return self.logits if isinstance(self.logits, float) else self.logits[head]

    @classmethod
    def examples(cls) -> Sequence[SinkLogits]:
        return cls(), cls(-2.5), cls(1.0, learned=True)
