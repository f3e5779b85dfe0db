"""``audit``: does a model attend as it declares? Asked of the running model, not of its code or its config.

One key after another is disturbed, and the queries whose heads notice are the ones that see it
(:mod:`swaa.hf.audit_probe`). That is held against the declared mask (:mod:`swaa.hf.audit_declared`).

Shape suffixes: L probed layers, S slots, N probed keys, H query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from swaa.errors import UserError, invalid
from swaa.hf.audit_declared import Blind, Sample, blind_spots, declared_layers, sample_of
from swaa.hf.audit_places import attention_places, transformers_model
from swaa.hf.audit_probe import Disturbance, Influence, Precision, influence
from swaa.hf.spec import read_spec, saved_policy, text_config
from swaa.policies import AttentionPolicy, FullAttention, LayerPolicy, parse_policy

_LOOKS = tuple(Disturbance(sign * 256.0**seed * 16, seed) for seed in range(3) for sign in (1, -1))
"""The runs over a key, as long as something differs there. Noise comes in pairs of either sign, on the same text: one
of the two raises the key's score, wherever scores are linear in the key."""
Look = Callable[[Sequence[int], Disturbance], Influence]
_NAMED = 4
"""Differences of a layer that are named one by one."""


@dataclass(frozen=True)
class Difference:
    """One pair of a query and a key of one head at which the model does not do what it declares.

    Attributes:
        declared: whether the key is declared visible. If so it has no influence; if not, it has.
    """

    layer: int
    head: int
    phase: str
    query: int
    key: int
    declared: bool

    def __str__(self) -> str:
        what = "declared visible, but no influence" if self.declared else "declared hidden, but it influences"
        return f"layer {self.layer}, head {self.head}, {self.phase}: query {self.query}, key {self.key}: {what}"


@dataclass(frozen=True)
class Drawing:
    """The two masks of a head over the probed keys: a row of ``0`` and ``1`` for each query."""

    layer: int
    head: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    declared: tuple[str, ...]
    effective: tuple[str, ...]


@dataclass(frozen=True)
class LayerAudit:
    """Layers that declare the same, and differ from it in the same way or not at all.

    Attributes:
        layers: their indices.
        prefill: what they declare for queries of the prompt, as Python.
        decode: what they declare for decoded queries.
        leaks: pairs of a layer, summed over heads, that are declared hidden and have influence.
        missing: pairs that are declared visible and have none.
        heads: the heads that differ.
        differences: the first of them, of the first of the layers and the first head that differs.
        drawing: of the first head that differs.
    """

    layers: tuple[int, ...]
    prefill: str
    decode: str
    leaks: int = 0
    missing: int = 0
    heads: tuple[int, ...] = ()
    differences: tuple[Difference, ...] = ()
    drawing: Drawing | None = None

    @property
    def agrees(self) -> bool:
        """Is nothing different?"""
        return not self.differences


@dataclass(frozen=True)
class Audit:
    """What an audit has found.

    Attributes:
        model: the model's class.
        policy: the declared policy, as Python, or None; layers have the architecture's masks besides.
        source: who declares it, in words.
        length: tokens of the probing text.
        prompt_length: of these, the prompt; the others were decoded one by one.
        keys: the probed keys; each against all queries of all layers and heads.
        num_heads: query heads of a layer.
        pairs: pairs of a query and a key that were compared, in each head.
        layers: the verdicts.
        not_probed: layers that do not attend, with what they do instead.
        blind: where the text is too short for a declared mask to show.
        dtype: that attention was computed in.
        error: the largest difference between equal rows, relative to the head's largest output.
        floor: the smallest one that was taken for influence.
    """

    model: str
    policy: str | None
    source: str
    length: int
    prompt_length: int
    keys: tuple[int, ...]
    num_heads: int
    pairs: int
    layers: tuple[LayerAudit, ...]
    not_probed: tuple[tuple[int, str], ...]
    blind: tuple[Blind, ...]
    dtype: str
    error: float
    floor: float

    @property
    def agrees(self) -> bool:
        """Does the model attend as declared, wherever it was probed?"""
        return all(layer.agrees for layer in self.layers)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The first differences of every group of layers."""
        return tuple(one for layer in self.layers for one in layer.differences)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data, with ``agrees``."""
        return {"agrees": self.agrees} | asdict(self)


def audit(
    model: nn.Module,
    declared: AttentionPolicy | str | Mapping[str, Any] | None = None,
    *,
    seq_len: int | None = None,
    prompt_len: int | None = None,
    num_keys: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Audit:
    """Hold the attention of a running model against a declared mask, by layer, head and phase.

    The model is left as it was: weights to the bit, hooks, mode. It may be set up in any way, with or without swaa.

    Args:
        model: a causal language model of transformers, or a wrapper of PEFT or torch.compile around one.
        declared: a policy, an expression or its dict form; intersected with the windows and chunks of the
            architecture, as :func:`swaa.apply_policy` does. None takes what the model's config declares: the policy
            saved on it, if any, and the architecture's masks.
        seq_len: tokens of the text. By default enough for the declared masks to show, 512 at most.
        prompt_len: tokens of these that are the prompt. By default all but a third, 16 at most.
        num_keys: keys to probe. By default all of up to 48 tokens, and else 16: at edges of the mask, and random ones.
        seed: of the text, of the noise and of the random keys.
        dtype: that attention is computed in: float64, or float32, which is the default where attention is
            FlexAttention, because it knows no float64.

    Raises:
        UserError: the model has no attention that can be probed; a number is out of range; the policy names a layer
            or head that the model lacks.
    """
    base = transformers_model(model)
    config = text_config(base.config)
    precision = _precision(config, dtype)
    policy, source = _declared(config, declared)
    layers = declared_layers(config, policy or FullAttention())
    places, others = attention_places(base)
    indices = [place.layer for place in places]
    most = getattr(config, "max_position_embeddings", None)
    sample = sample_of([layers[index] for index in indices], seq_len, prompt_len, num_keys, most, seed)

    def look(keys: Sequence[int], noise: Disturbance) -> Influence:
        noise = replace(noise, seed=noise.seed + seed)
        return influence(base, places, keys, sample.length, sample.prompt_length, noise, precision)

    with precision.inside(base, places):
        wrong_LSHN, error = _differing(look, torch.stack([sample.visible(layers[index]) for index in indices]), sample)
    return Audit(
        model=type(base).__name__,
        policy=None if policy is None else repr(policy),
        source=source,
        length=sample.length,
        prompt_length=sample.prompt_length,
        keys=sample.keys,
        num_heads=config.num_attention_heads,
        pairs=int(sample.compared_SN.sum()),
        layers=_verdicts(layers, indices, wrong_LSHN, sample),
        not_probed=tuple(sorted(others.items())),
        blind=blind_spots(layers, indices, sample, most),
        dtype=str(precision.dtype).removeprefix("torch."),
        error=error,
        floor=precision.floor,
    )


def _precision(config: Any, dtype: torch.dtype | None) -> Precision:
    """What attention can be computed in.

    Raises:
        UserError: the dtype is none of those, or flash attention knows neither.
    """
    implementation = str(getattr(config, "_attn_implementation", None))
    if "flash" in implementation:
        raise UserError(
            f"attn_implementation={implementation!r}: computes in 16 bits, where no influence and a small one look "
            f"alike. Load the model with attn_implementation='sdpa' or 'eager', and audit that."
        )
    flex = implementation == "flex_attention" or (read_spec(config) or {}).get("kernel") == "flex"
    chosen = dtype or (torch.float32 if flex else torch.float64)
    if chosen not in (torch.float64, torch.float32):
        raise invalid("dtype", accepted="torch.float64 or torch.float32", got=dtype, mend="Leave it out.")
    return Precision(chosen)


def _declared(
    config: Any, given: AttentionPolicy | str | Mapping[str, Any] | None
) -> tuple[AttentionPolicy | None, str]:
    if given is not None:
        return parse_policy(given), "the policy that was given"
    saved = saved_policy(config)
    return (None, "the model's config") if saved is None else (saved, "the policy on the model's config")


def _differing(look: Look, visible_LSHN: Tensor, sample: Sample) -> tuple[Tensor, float]:
    """Where influence and declaration differ for good, bool [L, S, H, N], and the error of the arithmetic.

    A key without influence has to have none in all looks, so that one of hardly any weight shows, too. Influence has to
    show on another text and with other noise as well, where a rounding that tipped over would not.
    """
    first, *others = _LOOKS
    found = look(sample.keys, first)
    wrong = (found.seen_LSHN != visible_LSHN) & sample.compared_SN.unsqueeze(1)
    missing, leaks, error = wrong & visible_LSHN, wrong & ~visible_LSHN, found.error
    sure = torch.zeros_like(leaks)
    for noise in others:
        doubtful = missing | leaks & ~sure if noise.seed != first.seed else missing
        columns = doubtful.flatten(0, 2).any(0).nonzero().squeeze(-1)
        if not len(columns):
            continue
        again = look([sample.keys[column] for column in columns.tolist()], noise)
        error = max(error, again.error)
        missing[..., columns] &= ~again.seen_LSHN
        if noise.seed != first.seed:
            sure[..., columns] |= leaks[..., columns] & again.seen_LSHN
    return missing | sure, error


def _verdicts(
    layers: Sequence[LayerPolicy], indices: Sequence[int], wrong_LSHN: Tensor, sample: Sample
) -> tuple[LayerAudit, ...]:
    groups: dict[tuple[LayerPolicy, bytes], list[int]] = {}
    for place, index in enumerate(indices):
        groups.setdefault((layers[index], wrong_LSHN[place].numpy().tobytes()), []).append(place)
    return tuple(
        _verdict(layer, tuple(indices[place] for place in places), wrong_LSHN[places[0]], sample)
        for (layer, _), places in groups.items()
    )


def _verdict(layer: LayerPolicy, alike: tuple[int, ...], wrong_SHN: Tensor, sample: Sample) -> LayerAudit:
    prefill, decode = layer.describe("prefill"), layer.describe("decode")
    if not bool(wrong_SHN.any()):
        return LayerAudit(alike, prefill, decode)
    visible_SHN = sample.visible(layer)
    missing = int((wrong_SHN & visible_SHN).sum())
    heads = wrong_SHN.any(0).any(-1).nonzero().squeeze(-1).tolist()
    first = [
        Difference(
            layer=alike[0],
            head=heads[0],
            phase="decode" if query >= sample.prompt_length else "prefill",
            query=query,
            key=sample.keys[key],
            declared=bool(visible_SHN[query, heads[0], key]),
        )
        for query, key in _first(wrong_SHN[:, heads[0]], sample.prompt_length)
    ]
    return LayerAudit(
        layers=alike,
        prefill=prefill,
        decode=decode,
        leaks=int(wrong_SHN.sum()) - missing,
        missing=missing,
        heads=tuple(heads),
        differences=tuple(first),
        drawing=_drawing(alike[0], heads[0], visible_SHN, wrong_SHN, sample),
    )


def _first(wrong_SN: Tensor, prompt_length: int) -> list[tuple[int, int]]:
    """The first differences of either phase, as (query, column of the key)."""
    found: list[tuple[int, int]] = [(query, column) for query, column in wrong_SN.nonzero().tolist()]
    early = [at for at in found if at[0] < prompt_length]
    late = [at for at in found if at[0] >= prompt_length]
    share = max(_NAMED // 2, _NAMED - len(late))
    return [*early[:share], *late[: _NAMED - len(early[:share])]]


_TALL, _WIDE = 36, 48


def _drawing(layer: int, head: int, visible_SHN: Tensor, wrong_SHN: Tensor, sample: Sample) -> Drawing:
    """Both masks of a head; of a long text the part around the first difference."""
    visible_SN, wrong_SN = visible_SHN[:, head], wrong_SHN[:, head]
    first_query, first_column = wrong_SN.nonzero()[0].tolist()
    top = max(0, min(first_query - _TALL // 4, sample.length - _TALL))
    left = max(0, min(first_column - _WIDE // 4, len(sample.keys) - _WIDE))
    rows, columns = slice(top, top + _TALL), slice(left, left + _WIDE)
    queries, keys = tuple(range(sample.length))[rows], sample.keys[columns]
    declared, effective = visible_SN[rows, columns], (visible_SN ^ wrong_SN)[rows, columns]
    return Drawing(layer, head, queries, keys, _bits(declared), _bits(effective))


def _bits(mask: Tensor) -> tuple[str, ...]:
    return tuple("".join("01"[value] for value in row) for row in mask.int().tolist())
