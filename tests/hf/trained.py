"""What a model trains."""

from __future__ import annotations

from torch import Tensor, nn

from swaa.hf.sharding import whole


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter that is trained, by its name; a tied one once, a sharded one whole."""
    return {name: whole(p).detach().clone() for name, p in model.named_parameters() if p.requires_grad}
