"""Policies from the files of other projects: which heads and layers they found can do with less.

A policy that was read from a file is one like any other: print it or store it, and the file is no longer needed. So
these are plain functions, and no names for YAML, where nothing reads files.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from swaa.errors import UserError, invalid
from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_int, check_ints
from swaa.policies.zoo.lazy_layers import LazyLayers
from swaa.policies.zoo.streaming_heads import StreamingHeads

_HEADS_FILE, _CONFIG_FILE = "full_attention_heads.tsv", "config.json"
_SLACK = 0.1  # training leaves some numbers a little outside 0 to 1; the original clips them, too


def duo_attention(
    path: str | Path,
    *,
    queries_per_kv_head: int,
    sparsity: float | None = None,
    threshold: float | None = None,
    num_sinks: int | None = None,
    window_size: int | None = None,
) -> AttentionPolicy:
    """The policy of a head pattern of DuoAttention (https://github.com/mit-han-lab/duo-attention, ``attn_patterns``).

    The file has a line for each layer and on it, between tabs, a number from 0 to 1 for each key-value head: how much
    it needs full attention. Heads below the threshold stream.

    Args:
        path: a folder with ``full_attention_heads.tsv`` and ``config.json``, or such a ``.tsv`` file.
        queries_per_kv_head: query heads that share a key-value head, at least 1 (Llama 3.1 8B: 4).
        sparsity: the share of heads that stream, 0 to 1; as in the original, the threshold is the quantile.
        threshold: in place of ``sparsity``, the least number of a head with full attention.
        num_sinks: first tokens that streaming heads see; that of ``config.json`` (``sink_size``) if None.
        window_size: recent tokens that they see; that of ``config.json`` (``recent_size``) if None.

    Raises:
        UserError: a file is not there or is no such file (line and column are named), or a value is out of its range.

    Source: Xiao et al., "DuoAttention" (arXiv 2410.10819).
    """
    check_int("duo_attention.queries_per_kv_head", queries_per_kv_head, at_least=1, unit="heads")
    file = Path(path).expanduser()
    file = file / _HEADS_FILE if file.is_dir() else file
    scores = _read_scores(file)
    streams = _below(scores, sparsity, threshold)
    heads = tuple(
        tuple(
            kv_head * queries_per_kv_head + query
            for kv_head in range(len(scores[layer]))
            if (layer, kv_head) in streams
            for query in range(queries_per_kv_head)
        )
        for layer in range(len(scores))
    )
    if num_sinks is None or window_size is None:
        config = _read_json(file.with_name(_CONFIG_FILE))
        num_sinks = _from_config(file, config, "sink_size") if num_sinks is None else num_sinks
        window_size = _from_config(file, config, "recent_size") if window_size is None else window_size
    return StreamingHeads(heads, num_sinks, window_size)


def light_transfer(
    path: str | Path, *, num_lazy: int | None = None, num_sinks: int = 4, window_size: int = 1020
) -> AttentionPolicy:
    """The policy of a file of lazy layers, as SWAA's repository has them (``LightTransfer/*_lazy_layers_freq.json``).

    Args:
        path: a JSON file: a mapping with ``selected_lazy_layers`` or ``lazy_layers``, or the list of layers itself.
        num_lazy: how many layers are lazy; the most frequent ones of ``layer_frequencies``. None for those selected.
        num_sinks: first tokens that lazy layers see, at least 0.
        window_size: recent tokens that they see, at least 1.

    Raises:
        UserError: the file is not there or is no such file, or a value is out of its range.

    Source: Zhang et al., "LightTransfer" (arXiv 2410.13846); the files: SWAA (arXiv 2512.10411).
    """
    file = Path(path).expanduser()
    content = _read_json(file)
    layers = _selected(file, content) if num_lazy is None else _most_frequent(file, content, num_lazy)
    check_ints(f"{file}: layers", layers, at_least=0, unit="layers")  # none twice
    return LazyLayers(layers, num_sinks, window_size)


def _read_scores(file: Path) -> list[list[float]]:
    """One number for each layer and key-value head."""
    lines = [line for line in _read(file).splitlines() if line.strip()]
    scores = [
        [_score(file, row, column, cell) for column, cell in enumerate(line.split("\t"), 1)]
        for row, line in enumerate(lines, 1)
    ]
    if not scores:
        raise UserError(f"{file}: the file is empty. Expected a line of numbers for each layer.")
    for row, line in enumerate(scores, 1):
        if len(line) != len(scores[0]):
            raise UserError(
                f"{file}, line {row}: expected {len(scores[0])} numbers, as on line 1, got {len(line)}. "
                f"Each layer has one for each key-value head."
            )
    return scores


def _score(file: Path, row: int, column: int, cell: str) -> float:
    try:
        score = float(cell)
    except ValueError:
        score = math.nan
    if not -_SLACK <= score <= 1 + _SLACK:
        mend = f"It should be DuoAttention's {_HEADS_FILE}: numbers between tabs."
        raise invalid(f"{file}, line {row}, column {column}", accepted="a number from 0 to 1", got=cell, mend=mend)
    return min(1.0, max(0.0, score))


def _below(scores: list[list[float]], sparsity: float | None, threshold: float | None) -> set[tuple[int, int]]:
    """The heads *(layer, key-value head)* that stream."""
    if (sparsity is None) == (threshold is None):
        got = f"sparsity={sparsity}, threshold={threshold}"
        mend = "Write for example sparsity=0.5."
        raise invalid("duo_attention", accepted="either sparsity or threshold", got=got, mend=mend)
    name, value = ("sparsity", sparsity) if threshold is None else ("threshold", threshold)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        mend = "Write for example 0.5."
        raise invalid(f"duo_attention.{name}", accepted="a number from 0 to 1", got=value, mend=mend)
    # ties fall to the earlier heads; the original breaks them by chance
    order = sorted((score, layer, head) for layer, row in enumerate(scores) for head, score in enumerate(row))
    if name == "threshold":
        return {(layer, head) for score, layer, head in order if score < value}
    # the quantile lies between two heads, and the heads below it stream: all of them only at 1
    count = len(order) if value == 1 else math.ceil(value * (len(order) - 1))
    return {(layer, head) for _, layer, head in order[:count]}


def _from_config(file: Path, config: Any, key: str) -> int:
    if not isinstance(config, dict) or key not in config:
        raise UserError(
            f"{file.with_name(_CONFIG_FILE)}: it has no {key!r}. Give num_sinks and window_size in the call."
        )
    return check_int(f"{file.with_name(_CONFIG_FILE)}: {key}", config[key], at_least=0)


def _selected(file: Path, content: Any) -> tuple[int, ...]:
    """The layers that the file calls lazy, ascending."""
    if isinstance(content, dict):
        content = content.get("selected_lazy_layers", content.get("lazy_layers"))
    if not isinstance(content, list):
        accepted = "a list of layers, or a mapping with 'selected_lazy_layers' or 'lazy_layers'"
        raise invalid(str(file), accepted=accepted, got=content, mend="Write for example [3, 7, 8].")
    return _ascending(file, content)


def _most_frequent(file: Path, content: Any, num_lazy: int) -> tuple[int, ...]:
    """The layers that were found lazy most often, ascending; of equals, those that the file has first."""
    try:
        counted = [(entry["layer_idx"], entry["frequency"]) for entry in content["layer_frequencies"]]
        ranked = sorted(counted, key=lambda pair: -pair[1])
    except (KeyError, TypeError):
        raise UserError(
            f"{file}: num_lazy needs 'layer_frequencies', a list of mappings with 'layer_idx' and 'frequency'. "
            f"Leave num_lazy out to take the layers that the file selects."
        ) from None
    if check_int("light_transfer.num_lazy", num_lazy, at_least=1, unit="layers") > len(ranked):
        accepted = f"at most the {len(ranked)} layers of {file}"
        raise invalid("light_transfer.num_lazy", accepted=accepted, got=num_lazy, mend="Choose fewer.")
    return _ascending(file, [layer for layer, _ in ranked[:num_lazy]])


def _ascending(file: Path, layers: list[Any]) -> tuple[int, ...]:
    for index, layer in enumerate(layers):
        check_int(f"{file}: layer {index}", layer, at_least=0, unit="layers")
    return tuple(sorted(layers))


def _read_json(file: Path) -> Any:
    try:
        return json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}, column {error.colno}: no JSON ({error.msg}). Mend it.") from None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). Check the path.") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: is no text. Expected DuoAttention's or LightTransfer's own file.") from None
