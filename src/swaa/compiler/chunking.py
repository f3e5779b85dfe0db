"""How many tokens of a long prompt are best read at a time.

Where no layer reads all keys, cutting the prompt costs attention nothing, and the rest of the network gains: what a
layer hands on to the next stays in the processor's cache, and its memory need not be asked of the system each time.
Layers of full attention lose more by it than the rest gains: each chunk goes over all earlier keys, in two parts.
Measured in docs/performance.md.
"""

from __future__ import annotations

from swaa.compiler.layout import TokenLayout
from swaa.compiler.runs import hides_nothing
from swaa.compiler.shape import ModelShape
from swaa.policies import AttentionPolicy, bind

CHUNK_ON_CPU = 2048
"""Tokens: of 512, 1,024, 2,048 and 4,096 the fastest for a model of 135M parameters on two cores."""


def even_chunk(prompt_length: int, device_type: str) -> int | None:
    """Tokens of each chunk but perhaps the last, of about :data:`CHUNK_ON_CPU`, where there is no attention to mind.

    None reads the prompt in one pass: it is short, or the device is another one, for which nothing is measured.
    """
    if device_type != "cpu" or prompt_length < 2 * CHUNK_ON_CPU:
        return None
    return -(-prompt_length // (prompt_length // CHUNK_ON_CPU))


def prefill_chunk(policy: AttentionPolicy, shape: ModelShape, prompt_length: int, device_type: str) -> int | None:
    """Tokens of a prompt to read at a time under a policy; None reads it in one pass.

    That is so, too, where a layer sees every earlier key, where later tokens are seen, so that the prompt has to be
    whole, and where keys are chosen by content.
    """
    chunk = even_chunk(prompt_length, device_type)
    if chunk is None or policy.sees_ahead():
        return None
    prompt = TokenLayout.contiguous(prompt_length, prompt_lengths=prompt_length)
    for layer in bind(policy, shape.num_layers, shape.num_heads).distinct:
        if layer.by_content or hides_nothing(layer, prompt):
            return None
    return chunk
