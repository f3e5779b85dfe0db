"""One request of one sample, timed: read the prompt, then generate greedily.

The loop is plain forward passes, the same for recipes and baselines, so that differences are of attention and cache.

Shapes: S prompt tokens, V vocabulary; one sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.engine.bench_memory import watch_memory
from swaa.engine.decode import accepts, now
from swaa.hf import held_bytes


class LeftOut(Exception):
    """A row of a benchmark cannot run on this machine or model; the message says why."""


@dataclass(frozen=True)
class Reading:
    """How a model is run.

    Attributes:
        chunk: tokens of the prompt read at a time; None reads it in one pass.
        tells_prompt: give ``prompt_lengths``, which models under a policy understand.
        caches: keep keys and values; without, a step sees its own token alone (a model without attention).
    """

    chunk: int | None = None
    tells_prompt: bool = False
    caches: bool = True


@dataclass(frozen=True)
class Timing:
    """What a request took.

    Attributes:
        prefill_seconds: from the prompt's tokens to the first new token.
        step_seconds: of each decode step, to the next new token.
        kv_bytes: keys and values that are held when decoding begins; None without a cache.
        rest_bytes, peak_bytes: see :class:`swaa.engine.bench_memory.Memory`.
    """

    prefill_seconds: float
    step_seconds: tuple[float, ...]
    kv_bytes: int | None
    rest_bytes: int | None
    peak_bytes: int | None


@torch.no_grad()
def time_request(model: Any, prompt_1S: Tensor, new_tokens: int, reading: Reading) -> Timing:
    """Run a request of ``new_tokens`` tokens: the first comes with the prefill, each other one is a decode step."""
    device = prompt_1S.device
    kv_bytes = None
    with watch_memory(device) as memory:
        answer = stream(model, prompt_1S, reading)
        seconds = []
        for step in range(new_tokens):
            start = now(device)
            _, cache = next(answer)
            seconds.append(now(device) - start)
            if step == 0 and cache is not None:
                kv_bytes = held_bytes(cache)
        del answer, cache
    return Timing(seconds[0], tuple(seconds[1:]), kv_bytes, memory.rest_bytes, memory.peak_bytes)


def stream(
    model: Any, prompt_1S: Tensor, reading: Reading, forced: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, Any]]:
    """The logits [V] of each new token and the cache, one forward pass (the prefill, a decode step) at a time.

    Args:
        forced: tokens to go on with, whatever is the likeliest; None takes the likeliest.
    """
    length, cache, steps = prompt_1S.shape[1], None, 0
    options: dict[str, Any] = {"use_cache": reading.caches}
    if accepts(model, "logits_to_keep"):
        options["logits_to_keep"] = 1
    if reading.tells_prompt:
        options["prompt_lengths"] = torch.tensor([length])
    for start in range(0, length, reading.chunk or length):
        part = prompt_1S[:, start : start + (reading.chunk or length)]
        out = _forward(model, part, start, cache, options)
        cache = out.past_key_values if reading.caches else None
    options.pop("prompt_lengths", None)
    while True:
        logits_V = out.logits[0, -1]
        token = logits_V.argmax().view(1, 1) if forced is None else prompt_1S.new_tensor([[forced[steps]]])
        if token.device.type == "cuda":
            token.item()  # as generate() does, to see whether the text has ended
        yield logits_V, cache
        out = _forward(model, token, length + steps, cache, options)
        steps += 1


def _forward(model: Any, ids_1Q: Tensor, start: int, cache: Any, options: dict[str, Any]) -> Any:
    """One pass over new tokens whose first position is ``start``."""
    if accepts(model, "position_ids"):
        options = {**options, "position_ids": torch.arange(start, start + ids_1Q.shape[1], device=ids_1Q.device)[None]}
    return model(input_ids=ids_1Q, past_key_values=cache, **options)
