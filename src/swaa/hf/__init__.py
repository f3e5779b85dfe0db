"""transformers: policies on models, and models by name. The only importer of transformers and peft."""

from swaa.hf.apply import PolicyHandle, apply_policy
from swaa.hf.forward import declare_prompt
from swaa.hf.load import load
from swaa.hf.shape import model_shape
from swaa.hf.spec import saved_policy
from swaa.hf.weights import fetch

__all__ = ["PolicyHandle", "apply_policy", "declare_prompt", "fetch", "load", "model_shape", "saved_policy"]
