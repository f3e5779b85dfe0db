"""What ``swaa explain --audit`` prints: plain data of an audit -> text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swaa.report.explain import index_runs


def audit_text(data: Mapping[str, Any]) -> str:
    """The audit of a model (see :meth:`swaa.hf.audit.Audit.to_dict`) as text: verdict, differences, both masks."""
    return "\n".join(_lines(data))


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    verdict = "agrees with" if data["agrees"] else "DIFFERS from"
    yield f"{data['model']} {verdict} {data['source']}" + (f": {data['policy']}" if data["policy"] else "")
    probed = [index for layer in data["layers"] for index in layer["layers"]]
    total = data["pairs"] * data["num_heads"] * len(probed)
    decoded = data["length"] - data["prompt_length"]
    yield (
        f"{len(probed)} layers x {data['num_heads']} heads x {data['pairs']:,} pairs = {total:,} compared: "
        f"{len(data['keys'])} keys, and every query of a prompt of {data['prompt_length']} tokens and {decoded} decoded"
    )
    yield ""
    for layer in data["layers"]:
        yield from _layer(layer, data["num_heads"])
    for index, kind in data["not_probed"]:
        yield f"layer {index}: not probed, it is no attention but {kind}"
    for spot in data["blind"]:
        mend = f"Give --seq-len {spot['length']}." if spot["length"] else "The model has no positions for more."
        yield (
            f"blind: in {data['length']} tokens with these keys no {spot['phase']} query shows what {spot['policy']} "
            f"hides ({_layers(spot['layers'])}), and full attention would look the same. {mend}"
        )
    drawn = min((layer for layer in data["layers"] if layer["drawing"]), key=_size, default=None)
    if drawn is not None:
        yield ""
        yield from _drawing(drawn["drawing"], data["prompt_length"])


def _layer(layer: Mapping[str, Any], num_heads: int) -> Iterator[str]:
    same = layer["prefill"] == layer["decode"]
    declared = layer["prefill"] if same else f"prefill: {layer['prefill']}; decode: {layer['decode']}"
    where, many = _layers(layer["layers"]), len(layer["layers"]) > 1
    if not layer["differences"]:
        yield f"{where}: {'agree' if many else 'agrees'} with {declared}"
        return
    heads = "all heads" if len(layer["heads"]) == num_heads else f"heads {index_runs(layer['heads'])}"
    leaks, missing = layer["leaks"], layer["missing"]
    yield f"{where}: {'DIFFER' if many else 'DIFFERS'} from {declared}"
    each = " in each" if many else ""
    yield f"    {leaks:,} pairs leak and {missing:,} are missing{each}, in {heads}; the first ones:"
    for one in layer["differences"]:
        what = "declared visible, but no influence" if one["declared"] else "declared hidden, but it influences"
        yield f"    {one['phase']}, head {one['head']}: query {one['query']}, key {one['key']}: {what}"


def _layers(indices: Sequence[int]) -> str:
    return f"layer{'s' if len(indices) > 1 else ''} {index_runs(indices)}"


def _size(layer: Mapping[str, Any]) -> int:
    size: int = layer["leaks"] + layer["missing"]
    return size


def _drawing(drawing: Mapping[str, Any], prompt_length: int) -> Iterator[str]:
    """The masks side by side: ``#`` visible, ``.`` hidden, ``!`` visible and declared hidden, ``?`` the reverse."""
    keys, queries = drawing["keys"], drawing["queries"]
    width = max(len(keys), len("declared"))
    yield f"layer {drawing['layer']}, head {drawing['head']}; keys {index_runs(keys)}"
    yield "# visible   . hidden   ! visible, and declared hidden   ? hidden, and declared visible"
    yield f"{'query':>7}  {'declared':{width}}  effective"
    for query, declared, effective in zip(queries, drawing["declared"], drawing["effective"], strict=True):
        if query == prompt_length and query != queries[0]:
            yield f"{'':7}  {'-' * width}  {'-' * width}  decode"
        ahead = [key > query for key in keys]
        left = "".join(_cell(one, one, later) for one, later in zip(declared, ahead, strict=True))
        right = "".join(_cell(*pair) for pair in zip(declared, effective, ahead, strict=True))
        yield f"{query:7}  {left:{width}}  {right}".rstrip()


def _cell(declared: str, effective: str, ahead: bool) -> str:
    if declared != effective:
        return "!" if effective == "1" else "?"
    return "#" if effective == "1" else " " if ahead else "."
