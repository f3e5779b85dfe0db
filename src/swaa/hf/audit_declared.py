"""What a model declares: its policy and the masks of its architecture, as the mask that an audit holds it to.

Shape suffixes: S slots, N probed keys, H query heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.errors import UserError, invalid
from swaa.hf.native import native_predicate, restrict
from swaa.policies import AttentionPolicy, LayerPolicy, Predicate, bind
from swaa.policies.boolean import EVERYWHERE
from swaa.policies.piecewise import Phase

MOST_BY_DEFAULT = 512
"""Tokens of the longest audit that nobody asked for."""
ALL_KEYS_UP_TO = 48
"""Tokens up to which every key is probed by default."""
KEYS_BY_DEFAULT = 16
_DECODED = 16


@dataclass(frozen=True)
class Sample:
    """What is probed: every query of ``length`` tokens, of which ``prompt_length`` are the prompt, and some keys."""

    length: int
    prompt_length: int
    keys: tuple[int, ...]

    @property
    def compared_SN(self) -> Tensor:
        """The pairs that tell something: not the token itself, whose own query changes, nor keys that come later."""
        q_S1, k_N = torch.arange(self.length).unsqueeze(-1), torch.tensor(self.keys)
        return (q_S1 > k_N) | ((q_S1 < k_N) & (k_N < self.prompt_length))

    def layout(self, queries: Tensor | None = None, keys: Tensor | None = None) -> TokenLayout:
        """Where the queries and keys stand; by default all slots as queries, and the keys that are probed."""
        q_S = torch.arange(self.length) if queries is None else queries
        k_N = torch.tensor(self.keys) if keys is None else keys
        return TokenLayout(q_S.unsqueeze(0), k_N.unsqueeze(0), (q_S >= self.prompt_length).unsqueeze(0))

    def visible(self, layer: LayerPolicy) -> Tensor:
        """The declared mask of one layer, bool [S, H, N]."""
        mask_HSN = dense_mask(layer, self.layout())[0]
        return mask_HSN.expand(layer.num_heads, -1, -1).movedim(0, 1)


@dataclass(frozen=True)
class Blind:
    """Layers whose policy hides nothing from any query of a phase in the tokens probed.

    Attributes:
        policy: what they declare for it, as Python.
        length: tokens that may show it (see :func:`fitting`), or None where the model has no positions for so many.
    """

    layers: tuple[int, ...]
    phase: str
    policy: str
    length: int | None


def declared_layers(config: Any, policy: AttentionPolicy) -> tuple[LayerPolicy, ...]:
    """By layer, the policy intersected with what the architecture's config declares.

    Raises:
        UserError: the policy names a layer or head that the model lacks, or chooses keys by content.
    """
    bound = bind(policy, config.num_hidden_layers, config.num_attention_heads)
    for head in (head for layer in bound.distinct for _, head in layer.groups):
        if any(atom.by_content for atom in (*head.prefill.atoms, *head.decode.atoms)):
            raise UserError(
                f"{policy}: chooses keys by what queries and keys say, so there is no mask that the model could be "
                f"held to. Audit a policy of positions."
            )
    return tuple(restrict(layer, native) for layer, native in zip(bound.layers, native_masks(config), strict=True))


def native_masks(config: Any) -> list[Predicate | None]:
    """By layer, the window or chunks that a text config declares: by the kinds of its layers, or for all of them."""
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None and getattr(config, "attention_layers", None):  # GPT-Neo's names
        kinds, window = (
            ["sliding_attention" if kind == "local" else kind for kind in config.attention_layers],
            (config.window_size),
        )
    if kinds is None:
        kinds = ["sliding_attention" if window else "chunked_attention"] * config.num_hidden_layers
    of_kind = {"sliding_attention": native_predicate(window, None), "chunked_attention": native_predicate(None, chunk)}
    return [of_kind.get(kind) for kind in kinds]


def sample_of(
    layers: Sequence[LayerPolicy],
    seq_len: int | None,
    prompt_len: int | None,
    num_keys: int | None,
    most: int | None,
    seed: int,
) -> Sample:
    """What to probe; what is None is chosen so that the declared masks show.

    Args:
        most: tokens that the model has positions for.

    Raises:
        UserError: a number is out of range.
    """
    length = min(MOST_BY_DEFAULT, fitting(layers), most or MOST_BY_DEFAULT) if seq_len is None else seq_len
    _check("seq_len", length, 2, most, "tokens")
    prompt = max(1, length - min(_DECODED, length // 3)) if prompt_len is None else prompt_len
    _check("prompt_len", prompt, 1, length, "tokens, seq_len at most")
    if num_keys is None:
        num_keys = length if length <= ALL_KEYS_UP_TO else KEYS_BY_DEFAULT
    _check("num_keys", num_keys, 1, None, "keys")
    whole = Sample(length, prompt, tuple(range(length)))
    return whole if num_keys >= length else Sample(length, prompt, _telling(layers, whole, num_keys, seed))


def _check(name: str, value: object, low: int, high: int | None, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        accepted = f"an int >= {low} ({unit})" if high is None else f"an int from {low} to {high} ({unit})"
        raise invalid(name, accepted=accepted, got=value, mend="Leave it out to have it chosen.")


def fitting(layers: Sequence[LayerPolicy]) -> int:
    """Tokens in which the largest parameter of the declared masks is at work in either phase."""
    sizes = [
        value
        for layer in set(layers)
        for _, head in layer.groups
        for atom in (*head.prefill.atoms, *head.decode.atoms)
        for name, value in atom.parameters().items()
        if isinstance(value, int) and not isinstance(value, bool) and name != "seed"
    ]
    largest = max(sizes, default=0)
    return max(32, largest + largest // 4 + 2 * _DECODED)


def _telling(layers: Sequence[LayerPolicy], whole: Sample, number: int, seed: int) -> tuple[int, ...]:
    """Keys beside an edge of a declared mask, first those at which most queries have one; a third are random."""
    length, prompt = whole.length, whole.prompt_length
    spread = torch.linspace(0, length - 1, 8).long()
    queries = torch.cat([spread, torch.tensor([prompt - 1, min(prompt, length - 1)])]).unique()
    edges_S = torch.zeros(length)
    for layer in set(layers):
        mask_HQK = dense_mask(layer, whole.layout(queries, torch.arange(length)))[0]
        changes_HQK = mask_HQK[..., 1:] != mask_HQK[..., :-1]
        at = changes_HQK.any(0).sum(0)
        edges_S[:-1] += at
        edges_S[1:] += at
    shuffled = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    ranked = shuffled[edges_S[shuffled].argsort(descending=True, stable=True)]
    edges = ranked[edges_S[ranked] > 0][: max(1, number - number // 3)].tolist()
    chosen = dict.fromkeys([*edges, *shuffled.tolist()])
    return tuple(sorted(list(chosen)[:number]))


def blind_spots(
    layers: Sequence[LayerPolicy], indices: Sequence[int], sample: Sample, most: int | None
) -> tuple[Blind, ...]:
    """Where the sample cannot tell the declared mask from full attention."""
    compared_SN = sample.compared_SN & (torch.arange(sample.length).unsqueeze(-1) > torch.tensor(sample.keys))
    decodes_S = torch.arange(sample.length) >= sample.prompt_length
    phases: tuple[tuple[Phase, Tensor], ...] = (("prefill", ~decodes_S), ("decode", decodes_S))
    spots = []
    for layer in dict.fromkeys(layers[index] for index in indices):
        hidden_SHN = ~sample.visible(layer) & compared_SN.unsqueeze(1)
        needed = fitting([layer])
        length = needed if most is None or needed <= most else None
        for phase, rows_S in phases:
            restricts = [head for head, group in layer.groups if group.formula(phase) != EVERYWHERE]
            shown = hidden_SHN[rows_S].any(0).any(-1)
            if any(not bool(shown[list(heads)].all()) for heads in restricts):
                alike = tuple(index for index in indices if layers[index] == layer)
                spots.append(Blind(alike, phase, layer.describe(phase), length))
    return tuple(spots)
