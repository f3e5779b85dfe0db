"""The sizes of a model that costs depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields

from swaa.errors import invalid

VOCABULARY = 49_152
"""Tokens of the vocabulary, where nothing else is said: SmolLM2's."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Args:
        num_layers: decoder layers.
        num_heads: query heads of a layer.
        num_kv_heads: key-value heads of a layer.
        head_dim: size of one head.
        bytes_per_value: of a weight and of a cached key or value entry; 2 for bf16.
        hidden_size: of the residual stream; 0 stands for ``num_heads * head_dim``.
        layer_weights: weights of a layer that each token is multiplied with (of experts, those that a token gets); 0
            stands for the four projections of attention and an MLP of ``8 * hidden_size**2``, as in Llama.
        head_weights: those of the output head; 0 stands for ``hidden_size`` times ``VOCABULARY``.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    bytes_per_value: int = 2
    hidden_size: int = 0
    layer_weights: int = 0
    head_weights: int = 0

    def __post_init__(self) -> None:
        optional = ("hidden_size", "layer_weights", "head_weights")
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in optional else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise invalid(
                    f"shape.{field.name}", accepted=f"an int >= {least}", got=value, mend="Check the model's config."
                )
        if self.num_heads % self.num_kv_heads:
            mend = f"Make num_heads ({self.num_heads}) a multiple of it."
            raise invalid("shape.num_kv_heads", accepted="a divisor of num_heads", got=self.num_kv_heads, mend=mend)
        hidden = self.hidden_size or self.num_heads * self.head_dim
        projections = 2 * hidden * self.head_dim * (self.num_heads + self.num_kv_heads)
        object.__setattr__(self, "hidden_size", hidden)
        object.__setattr__(self, "layer_weights", self.layer_weights or projections + 8 * hidden**2)
        object.__setattr__(self, "head_weights", self.head_weights or hidden * VOCABULARY)
