"""The sizes of a model that costs depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields

from swaa.errors import invalid


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Args:
        num_layers: decoder layers.
        num_heads: query heads of a layer.
        num_kv_heads: key-value heads of a layer.
        head_dim: size of one head.
        bytes_per_value: of a cached key or value entry; 2 for bf16.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    bytes_per_value: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise invalid(
                    f"shape.{field.name}", accepted="an int >= 1", got=value, mend="Check the model's config."
                )
        if self.num_heads % self.num_kv_heads:
            mend = f"Make num_heads ({self.num_heads}) a multiple of it."
            raise invalid("shape.num_kv_heads", accepted="a divisor of num_heads", got=self.num_kv_heads, mend=mend)
