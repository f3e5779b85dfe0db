"""What ``swaa explain`` prints: plain data from the compiler -> tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text


def explanation_table(data: Mapping[str, Any]) -> Group:
    """The explanation of a policy (see :func:`swaa.compiler.explain.explain`) as rich tables."""
    sizes = (
        f"{data['num_layers']} layers, {data['num_heads']} heads ({data['num_kv_heads']} KV) of {data['head_dim']}; "
        f"prompt {data['prompt_length']:,} tokens, {data['new_tokens']:,} generated"
    )
    tables = (_layers(data), _kernels(data), _totals(data), _time(data))
    scores = [] if data["scores"] is None else [Text(f"scores: {data['scores']} (times are those without)")]
    return Group(Text(data["policy"], style="bold"), *scores, Text(sizes), Text(), *tables)


def _layers(data: Mapping[str, Any]) -> Table:
    table = _table("effective policy")
    table.add_column("layers", overflow="fold")
    for phase in ("prefill", "decode"):
        table.add_column(phase, overflow="fold")
    if data["scores"] is not None:
        table.add_column("scores", overflow="fold")
    for heading in ("pairs,\nprefill", "pairs,\ndecode", "KV\nkept"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in data["layers"]:
        table.add_row(
            index_runs(layer["layers"]),
            layer["prefill"],
            "the same" if layer["decode"] == layer["prefill"] else layer["decode"],
            *([] if data["scores"] is None else [layer["scores"]]),
            _percent(layer["prefill_pair_share"]),
            _percent(layer["decode_pair_share"]),
            _percent(layer["kv_share"]),
        )
    notes = [f"layers {index_runs(layer['layers'])}: {note}" for layer in data["layers"] for note in layer["notes"]]
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def _kernels(data: Mapping[str, Any]) -> Table:
    """Which kernels compute which layers, and why."""
    layers_of: dict[tuple[str, str], list[int]] = {}
    for layer in data["layers"]:
        layers_of.setdefault((layer["prefill_kernel"], layer["decode_kernel"]), []).extend(layer["layers"])
    table = _table("kernels")
    for heading in ("layers", "prefill", "decode"):
        table.add_column(heading, overflow="fold")
    for kernels, indices in layers_of.items():
        table.add_row(index_runs(sorted(indices)), *kernels)
    return table


def _totals(data: Mapping[str, Any]) -> Table:
    totals = data["totals"]
    table = _table("all layers")
    table.add_column("")
    for heading in ("policy", "full attention", "share"):
        table.add_column(heading, justify="right")
    for name, key, scale in (
        ("attention GFLOPs, prefill", "prefill_flops", 1e9),
        ("attention GFLOPs, decode", "decode_flops", 1e9),
        ("KV kept after the prompt, MB", "kv_bytes", 1e6),
    ):
        ours, full = totals[key], totals[f"full_{key}"]
        table.add_row(name, f"{ours / scale:,.3f}", f"{full / scale:,.3f}", _percent(ours / full if full else None))
    table.add_row("visible pairs", "", "", _percent(totals["visible_pair_share"]))
    field, prompt = totals["receptive_field"], data["prompt_length"]
    table.add_row("receptive field, tokens", f"{field:,}", f"{prompt:,}", _percent(field / prompt))
    return table


def _time(data: Mapping[str, Any]) -> Table:
    """Predicted seconds, and how many times faster than full attention that is."""
    time = data["time"]
    table = _table("predicted time")
    table.caption, table.caption_justify = f"on: {time['machine']}", "left"
    table.add_column("")
    for heading in ("policy", "full attention", "speed-up"):
        table.add_column(heading, justify="right")
    chunked = time["chunked_prefill"] is not None
    once = " in one pass" if chunked else ""
    rows = [(f"prefill{once}, s", "prefill", "prefill", 1.0)]
    if chunked:
        rows.append((f"prefill in chunks of {data['prefill_chunk_size']:,}, s", "chunked_prefill", "prefill", 1.0))
    if time["full_step"]:
        rows += [("decode step, ms", "step", "step", 1e3), (f"whole request{once}, s", "request", "request", 1.0)]
    for name, key, whole, scale in rows:
        ours, full = scale * time[key], scale * time[f"full_{whole}"]
        table.add_row(name, f"{ours:,.3g}", f"{full:,.3g}", f"{full / ours:.2f}x")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def index_runs(indices: Sequence[int]) -> str:
    """``0-3,5,8-20:2`` for a sorted list of indices: runs, steps and single ones."""
    parts: list[str] = []
    start = 0
    while start < len(indices):
        stop = start + 1
        step = indices[stop] - indices[start] if stop < len(indices) else 1
        while stop < len(indices) and indices[stop] - indices[stop - 1] == step:
            stop += 1
        if stop - start >= 3:
            parts.append(f"{indices[start]}-{indices[stop - 1]}" + (f":{step}" if step > 1 else ""))
            start = stop
        else:
            parts.append(str(indices[start]))
            start += 1
    return ",".join(parts)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g}%"
