"""What every policy and pattern of the zoo shows, as plain loops over ints: which keys a query sees.

Nothing here imports swaa. A policy's function takes the query's position and the policy's arguments; a pattern's takes
the layer, head and phase before them. Each gives a set of key positions, built up from ranges rather than judged pair
by pair; what lies after the query may be in it, and is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

Keys = set[int]


# --------------------------------------------------------------------------------------------------- policies


def full_attention(q: int) -> Keys:
    return set(range(q + 1))


def sliding_window(q: int, size: int) -> Keys:
    return set(range(max(0, q - size + 1), q + 1))


def sink_tokens(q: int, count: int) -> Keys:
    return set(range(min(count, q + 1)))


def dilated_window(q: int, size: int, dilation: int) -> Keys:
    seen, key = set(), q
    while len(seen) < size and key >= 0:
        seen.add(key)
        key -= dilation
    return seen


def chunked_attention(q: int, size: int) -> Keys:
    return next(set(chunk) for chunk in _cut(q, size) if q in chunk)


def block_window(q: int, size: int, blocks: int) -> Keys:
    return set().union(*list(_cut(q, size))[-blocks:])


def random_blocks(q: int, size: int, seeds: tuple[int, ...]) -> Keys:
    blocks = list(_cut(q, size))
    earlier = len(blocks) - 1
    return set().union(*(blocks[_drawn((seed, earlier)) * earlier // 536870909] for seed in seeds if earlier))


def random_keys(q: int, keys: int, seed: int) -> Keys:
    return {q} | {k for k in range(q) if _drawn((seed, q, k)) / 536870909 < (keys - 1) / q}


def strided_attention(q: int, stride: int) -> Keys:
    return sliding_window(q, stride) | set(range(q, -1, -stride))


def fixed_attention(q: int, stride: int, summary: int) -> Keys:
    blocks = list(_cut(q + stride, stride))
    return chunked_attention(q, stride) | {k for block in blocks for k in block[-summary:]}


def every_nth_token(q: int, step: int, width: int, start: int) -> Keys:
    return {k for run in range(start, q + 1, step) for k in range(run, run + width)}


def log_sparse(q: int) -> Keys:
    seen, distance = {q}, 1
    while distance <= q:
        seen.add(q - distance)
        distance += distance
    return seen


def document_isolation(q: int, starts: tuple[int, ...]) -> Keys:
    return set(range(max(start for start in (0, *starts) if start <= q), q + 1))


def vertical_lines(q: int, positions: tuple[int, ...]) -> Keys:
    return set(positions)


def slash_lines(q: int, distances: tuple[int, ...]) -> Keys:
    return {q - distance for distance in distances}


def global_tokens(q: int, positions: tuple[int, ...]) -> Keys:
    return full_attention(q) if q in positions else set(positions)


def _cut(last: int, size: int) -> Iterable[range]:
    """The blocks up to the one that holds position ``last``."""
    for start in range(0, last + 1, size):
        yield range(start, start + size)


def _drawn(values: tuple[int, ...]) -> int:
    """The draw for these numbers, in Python's ints, which never overflow."""
    state = 88675123
    for value in (*values, 1, 2):
        state = (pow(state, 2) + 181783497 * value + 123456791) % 536870909
    return state


KEYS: dict[str, Callable[..., Keys]] = {
    "FullAttention": full_attention,
    "SlidingWindow": sliding_window,
    "SinkTokens": sink_tokens,
    "DilatedWindow": dilated_window,
    "ChunkedAttention": chunked_attention,
    "BlockWindow": block_window,
    "RandomBlocks": random_blocks,
    "RandomKeys": random_keys,
    "StridedAttention": strided_attention,
    "FixedAttention": fixed_attention,
    "EveryNthToken": every_nth_token,
    "LogSparse": log_sparse,
    "DocumentIsolation": document_isolation,
    "VerticalLines": vertical_lines,
    "SlashLines": slash_lines,
    "GlobalTokens": global_tokens,
}


# --------------------------------------------------------------------------------------------------- patterns


def _streaming(q: int, sinks: int, window: int) -> Keys:
    """A cache that holds the first tokens and the last ones."""
    text = list(range(q + 1))
    return set(text[:sinks]) | set(text[-window:])


def a_shape(layer: int, head: int, phase: str, q: int, sinks: int, window: int) -> Keys:
    return full_attention(q) if phase == "decode" else _streaming(q, sinks, window)


def streaming_llm(layer: int, head: int, phase: str, q: int, sinks: int, window: int, positions: str = "text") -> Keys:
    return _streaming(q, sinks, window)


def longformer(
    layer: int, head: int, phase: str, q: int, window: int, globals_: tuple[int, ...] = (0,), dilation: int = 1
) -> Keys:
    return full_attention(q) if q in globals_ else {*globals_, *range(q, q - window * dilation, -dilation)}


def big_bird(
    layer: int, head: int, phase: str, q: int, size: int, window: int = 2, first: int = 1, drawn: int = 1, seed: int = 0
) -> Keys:
    blocks = list(_cut(q, size))
    seen = set().union(*blocks[:first], *blocks[-window:])
    for each in range(drawn):
        seen |= random_blocks(q, size, (seed + each,))
    return seen


def streaming_heads(
    layer: int, head: int, phase: str, q: int, heads: tuple[tuple[int, ...], ...], sinks: int, window: int
) -> Keys:
    streams = layer < len(heads) and head in heads[layer]
    return _streaming(q, sinks, window) if streams else full_attention(q)


def lazy_layers(layer: int, head: int, phase: str, q: int, lazy: Any, sinks: int = 4, window: int = 1020) -> Keys:
    if isinstance(lazy, str):
        lazy = range(100)[slice(*(int(part) if part else None for part in lazy.split(":")))]
    return _streaming(q, sinks, window) if layer in lazy else full_attention(q)


def windows_by_layer(layer: int, head: int, phase: str, q: int, windows: tuple[int, ...], sinks: int = 0) -> Keys:
    return _streaming(q, sinks, [*windows, *[windows[-1]] * layer][layer])


def window_pyramid(
    layer: int, head: int, phase: str, q: int, first: int, last: int, layers: int, sinks: int = 0
) -> Keys:
    share = min(layer, layers - 1) / (layers - 1)
    return _streaming(q, sinks, int((1 - share) * first + share * last + 1e-9))


def windows_by_phase(layer: int, head: int, phase: str, q: int, prefill: int, decode: int, sinks: int = 0) -> Keys:
    return _streaming(q, sinks, {"prefill": prefill, "decode": decode}[phase])


def interleaved_layers(layer: int, head: int, phase: str, q: int, window: int, period: int = 6, sinks: int = 0) -> Keys:
    return full_attention(q) if (layer + 1) % period == 0 else _streaming(q, sinks, window)


def vertical_slash(
    layer: int, head: int, phase: str, q: int, positions: tuple[int, ...], distances: tuple[int, ...]
) -> Keys:
    return full_attention(q) if phase == "decode" else {*positions, *(q - distance for distance in distances)}


PATTERNS: dict[str, Callable[..., Keys]] = {
    "AShape": a_shape,
    "StreamingLLM": streaming_llm,
    "LMInfinite": streaming_llm,
    "Longformer": longformer,
    "BigBird": big_bird,
    "StreamingHeads": streaming_heads,
    "LazyLayers": lazy_layers,
    "WindowsByLayer": windows_by_layer,
    "WindowPyramid": window_pyramid,
    "WindowsByPhase": windows_by_phase,
    "InterleavedLayers": interleaved_layers,
    "VerticalSlash": vertical_slash,
}


@cache
def keys(name: str, args: tuple[Any, ...], layer: int, head: int, phase: str, q: int) -> Keys:
    """The keys that this query sees, none after it."""
    seen = KEYS[name](q, *args) if name in KEYS else PATTERNS[name](layer, head, phase, q, *args)
    return {k for k in seen if 0 <= k <= q}
