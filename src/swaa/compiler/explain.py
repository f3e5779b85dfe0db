"""What a policy comes to on a model: effective policy, cost and kernel of every layer, as plain data."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from swaa.compiler.chunking import prefill_chunk
from swaa.compiler.cofactors import choices, in_phase
from swaa.compiler.cost import estimate_cost
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import Job, choose_kernel
from swaa.compiler.reach import receptive_field
from swaa.compiler.runs import hides_nothing
from swaa.compiler.shape import ModelShape
from swaa.compiler.timing import Machine, default_machine, predict
from swaa.policies import AttentionPolicy, LayerPolicy, bind
from swaa.policies.scores import LayerScores, Scores, bind_scores


def explain(
    policy: AttentionPolicy,
    shape: ModelShape,
    prompt_length: int,
    new_tokens: int = 64,
    *,
    device_type: str = "cpu",
    kernel: str = "auto",
    machine: Machine | None = None,
    scores: Scores | None = None,
) -> dict[str, Any]:
    """Everything that can be said of a policy on a model of this shape without running it.

    Args:
        machine: what times are predicted for; None takes the default profile of the device and of the values' size.
        scores: what becomes of attention scores besides. Predicted times do not know of it.

    Returns:
        JSON-able data: ``policy`` and ``scores`` (Python, or None), ``layers`` (one entry per distinct effective policy
        and scores, with its layer indices, the policy of each phase, the scores, shares of full attention's pairs and
        KV, the kernel of each phase, and ``notes``: what the figures cannot say), ``totals`` (pairs, FLOPs, bytes,
        receptive field), ``time`` (predicted seconds of prefill, decode step and request, full attention's, and the
        ratios; of a prefill in chunks, or None; the name of the machine), ``prefill_chunk_size`` (tokens of the chunks
        that ``auto`` takes, or None) and the sizes asked about.

    Raises:
        UserError: as :func:`swaa.compiler.estimate_cost`.
    """
    cost = estimate_cost(policy, shape, prompt_length, new_tokens)
    machine = machine or default_machine(device_type, shape.bytes_per_value)
    ask = functools.partial(
        predict, policy, shape, prompt_length, new_tokens, machine, device_type=device_type, kernel=kernel
    )
    predicted = ask()
    chunk = prefill_chunk(policy, shape, prompt_length, device_type)
    bound = bind(policy, shape.num_layers, shape.num_heads)
    prompt = TokenLayout.contiguous(prompt_length)
    decode_job = Job(1, prompt_length + 1, device_type, is_square=False)
    changed = (None,) * shape.num_layers if scores is None else bind_scores(scores, shape.num_layers, shape.num_heads)
    distinct: dict[tuple[LayerPolicy, LayerScores | None], list[int]] = {}
    for index, kind in enumerate(zip(bound.layers, changed, strict=True)):
        distinct.setdefault(kind, []).append(index)
    layers = []
    for (layer, change), indices in distinct.items():
        counts = cost.layers[indices[0]]
        is_full = hides_nothing(layer, prompt)
        reading = in_phase(layer, "prefill") if layer.by_content else layer
        prefill_job = Job(
            prompt_length,
            prompt_length,
            device_type,
            hides_nothing=is_full,
            has_sink_logits=change is not None and any(change.sinks),
            has_scores=change is not None and change.changes_scores,
        )
        layers.append(
            {
                "layers": indices,
                "scores": None if change is None else change.describe(),
                "prefill": layer.describe("prefill"),
                "decode": layer.describe("decode"),
                "prefill_pair_share": counts.prefill_pairs / cost.full.prefill_pairs,
                "decode_pair_share": counts.decode_pairs / cost.full.decode_pairs if new_tokens else None,
                "kv_share": counts.kept_keys / cost.full.kept_keys,
                "prefill_kernel": str(choose_kernel(reading, prefill_job, kernel)),
                "decode_kernel": str(choose_kernel(layer, decode_job, kernel)),
                "notes": _notes(layer),
            }
        )
    return {
        "policy": repr(policy),
        "scores": None if scores is None else repr(scores),
        "num_layers": shape.num_layers,
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "prompt_length": prompt_length,
        "new_tokens": new_tokens,
        "prefill_chunk_size": chunk,
        "layers": layers,
        "totals": {
            "visible_pair_share": cost.visible_pair_share,
            "kv_share": cost.kv_share,
            "prefill_flops": cost.prefill_flops,
            "full_prefill_flops": cost.full_prefill_flops,
            "decode_flops": cost.decode_flops,
            "full_decode_flops": cost.full_decode_flops,
            "kv_bytes": cost.kv_bytes,
            "full_kv_bytes": cost.full_kv_bytes,
            "receptive_field": receptive_field(bound, prompt_length),
        },
        "time": {
            **dataclasses.asdict(predicted),
            "prefill_ratio": predicted.prefill_ratio,
            "step_ratio": predicted.step_ratio,
            "request_ratio": predicted.request_ratio,
            "chunked_prefill": None if chunk is None else ask(chunk=chunk).prefill,
            "machine": machine.name,
        },
    }


def _notes(layer: LayerPolicy) -> list[str]:
    """What is to be said of choices by content."""
    names = ", ".join(repr(choice) for choice in choices(layer))
    if not names:
        return []
    forever = any(head.decode.by_content for _, head in layer.groups)
    when = "keys cannot be freed" if forever else "keys cannot be freed before the prompt ends"
    bounds = "pairs are at most these, as what is visible depends on content; times leave the choosing out"
    return [f"{when}: {names} chooses by content", bounds]
