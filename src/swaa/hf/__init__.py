"""transformers: policies on models, and models by name. The only importer of transformers and peft.

Names are imported on first use: transformers takes seconds, and fetching weights or reading help does not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swaa.hf.apply import PolicyHandle, apply_policy
    from swaa.hf.cache import PolicyCache, held_bytes
    from swaa.hf.loading import load
    from swaa.hf.prompt import declare_prompt
    from swaa.hf.shape import model_shape
    from swaa.hf.spec import saved_policy
    from swaa.hf.weights import fetch

__all__ = [
    "PolicyCache",
    "PolicyHandle",
    "apply_policy",
    "declare_prompt",
    "fetch",
    "held_bytes",
    "load",
    "model_shape",
    "saved_policy",
]

_MODULES = {
    "PolicyCache": "cache",
    "PolicyHandle": "apply",
    "apply_policy": "apply",
    "declare_prompt": "prompt",
    "fetch": "weights",
    "held_bytes": "cache",
    "load": "loading",
    "model_shape": "shape",
    "saved_policy": "spec",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
