"""``PolicyCache``: a transformers cache that keeps exactly the keys which some query to come may see.

Every layer begins like a ``DynamicLayer``. The first time that attention runs on its keys, it tells the layer the
policy (:meth:`PolicyLayer.settle`), and from then on the layer holds one :class:`~swaa.hf.books.KeyPart` for each
group of KV heads that keep the same keys. A model that does not pass keyword arguments on never tells; its layers go on
keeping everything.

Shape suffixes: B samples, H query heads, G KV heads, Q new tokens, C slots, D head size, R rows (1 or B).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from swaa.compiler.attention import dense_attention
from swaa.compiler.eviction import Step
from swaa.compiler.heads import slices_of
from swaa.errors import UserError
from swaa.hf.books import CacheBooks, KeyPart
from swaa.hf.prompt import BOOKS, declare_prompt, remembered
from swaa.hf.spec import read_spec, text_config
from swaa.policies.bound import LayerPolicy
from swaa.policies.scores import LayerScores


class PolicyLayer(DynamicLayer):
    """A layer's keys and values under a policy. Made by :func:`evict_in`."""

    is_sliding = False

    def __init__(self, books: CacheBooks, leads: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: list[KeyPart] = []
        self._books = books
        self._leads = leads
        """The first layer: cache operations reach the books through it, once."""
        self._seen = 0
        self._last_step: Step | None = None
        self._settled: Step | None = None
        self.is_split = False
        """Does this forward pass attend to the parts, and not, as a first one, to its own keys?"""

    # What the model calls.

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in the keys of a forward pass; the keys and values to attend to.

        Where heads hold different keys there is no such tensor: the new ones are returned, and :meth:`attend` finds
        the others in the parts.
        """
        step = self._books.step
        if step is None or step is self._last_step or step.positions_RQ.shape[-1] != key_states.shape[2]:
            raise UserError(
                "past_key_values: a cache made for a policy was given to a model without one, or past its hooks. "
                "Use it with the model that swaa.apply_policy was called on."
            )
        self._last_step = step
        self._books.take(step)
        self._seen += key_states.shape[2]
        self.is_split = bool(self.parts)
        if not self.parts:
            return super().update(key_states, value_states)
        if len(self.parts) == 1:
            self.keys, self.values = self.parts[0].write(key_states, value_states, step)
            return self.keys, self.values
        for part in self.parts:
            at = list(part.kv_heads)
            part.write(key_states[:, at], value_states[:, at], step)
        self._new = (key_states, value_states)
        return self._new

    def get_seq_length(self) -> int:
        """Tokens that have come in, padding and dropped ones included."""
        return self._seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The length and offset of the keys as they came in; the policy's own masks go by what is held."""
        return self._seen + query_length, 0

    # What attention calls.

    def attend(self, query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, kernel: str, **options: Any) -> Tensor:
        """Attention of the new tokens against what is held.

        Args:
            key_BGKD: what :meth:`update` returned.
            options: scale, dropout, softcap, sink logits and scores of :meth:`AttentionProgram.attend`.

        Returns:
            [B, H, Q, D]
        """
        if len(self.parts) == 1:
            return self._attend(self.parts[0], query_BHQD, key_BGKD, value_BGKD, kernel, **options)
        if key_BGKD is not self._new[0] or value_BGKD is not self._new[1]:
            raise UserError(
                "past_key_values: this model changes keys or values behind the cache, and heads that hold different "
                "keys cannot be evicted then. Apply the policy with evict=False."
            )
        by_head = {name: options.pop(name, None) for name in ("sink_logits_H", "learned_sinks_H")}
        scores: LayerScores | None = options.pop("scores", None)
        out_BHQD = query_BHQD.new_empty(*query_BHQD.shape[:3], value_BGKD.shape[-1])
        for part in self.parts:
            at, used = list(part.heads.query_heads), part.table.write(self._step).used
            keys, values = part.keys[:, :, :used], part.values[:, :, :used]
            mine = {name: None if one is None else one[at] for name, one in by_head.items()}
            own = None if scores is None else scores.of_heads(part.heads.query_heads)
            out_BHQD[:, at] = self._attend(part, query_BHQD[:, at], keys, values, kernel, scores=own, **mine, **options)
        return out_BHQD

    def _attend(
        self, part: KeyPart, query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, kernel: str, **options: Any
    ) -> Tensor:
        device = query_BHQD.device
        scores, learned = options.pop("scores", None), options.pop("learned_sinks_H", None)
        if query_BHQD.shape[2] == 1 and not part.heads.policy.by_content and scores is None:
            return dense_attention(query_BHQD, key_BGKD, value_BGKD, self._books.mask(part.table, device), **options)
        options |= {"scores": scores, "learned_sinks_H": learned}
        program = self._books.program(part.table, device, kernel)
        return program.attend(part.heads.policy, query_BHQD, key_BGKD, value_BGKD, **options)

    def settle(self, layer: LayerPolicy) -> None:
        """Attention has run: drop what no query to come may see. Some models attend twice in a layer."""
        if self._settled is self._step:
            return
        self._settled = self._step
        if not self.parts:
            if self._seen != self._step.positions_RQ.shape[-1]:
                return  # earlier passes did not tell their policy: everything is kept
            assert self.keys is not None
            assert self.values is not None
            num_kv_heads = self.keys.shape[1]  # attention may see more: some models cache what their heads share
            for heads in slices_of(layer, num_kv_heads):
                at = list(heads.kv_heads)
                table = self._books.table(heads.policy)
                table.start(self._step)
                whole = len(at) == num_kv_heads
                keys, values = (self.keys, self.values) if whole else (self.keys[:, at], self.values[:, at])
                self.parts.append(KeyPart(heads, keys, values, table))
        for part in self.parts:
            part.keep(part.table.settle(self._step))
        self._publish()

    @property
    def _step(self) -> Step:
        assert self._books.step is not None
        return self._books.step

    def _publish(self) -> None:
        """``keys`` and ``values``, as other cache layers have them, where all heads hold the same."""
        if self.parts:
            one = self.parts[0] if len(self.parts) == 1 else None
            self.keys, self.values = (None, None) if one is None else (one.keys, one.values)

    # Cache operations. Cache calls them on one layer after another, from the first.

    @property
    def record_past(self) -> bool:
        """Is nothing dropped between crops?"""
        return self._books.recording

    @record_past.setter
    def record_past(self, recording: bool) -> None:
        self._books.recording = recording

    def activate_past_recording(self) -> None:
        """Drop nothing but in :meth:`crop`, which may take the newest tokens back; until ``record_past = False``."""
        self._books.recording = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest ``-tokens_to_remove`` slots, and drop what is dead.

        A positive number is the length to crop to, as transformers had it before 5.18.

        Raises:
            UserError: keys that would be visible again have been dropped.
        """
        tokens_to_remove = int(tokens_to_remove)  # generate() may pass a tensor, which the counts would share
        remove = -tokens_to_remove if tokens_to_remove <= 0 else max(0, self._seen - tokens_to_remove)
        if self._leads:
            self._books.crop(min(remove, self._seen))
        if not self.parts:
            super().crop(-remove)
        self._seen = max(0, self._seen - remove)
        for part in self.parts:
            part.keep(self._books.cropped[part.table.policy])
        self._publish()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the samples into another order."""
        self._select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples."""
        indices = torch.as_tensor(indices)
        self._select_rows(indices.nonzero().squeeze(-1) if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        if self.is_initialized:
            rows = len(self.parts[0].keys if self.parts else cast("Tensor", self.keys))
            self._select_rows(torch.arange(rows).repeat_interleave(repeats))

    def _select_rows(self, index: Tensor) -> None:
        if self._leads:
            self._books.select_rows(index)
        if not self.parts and self.is_initialized:
            super().reorder_cache(cast("torch.LongTensor", index))
        for part in self.parts:
            part.select_rows(index)
        self._publish()

    def reset(self) -> None:
        """Empty the layer."""
        # older releases of transformers only fill keys with zeros, which would then be another prompt's first tokens
        self.keys = self.values = None
        self.is_initialized = False
        self.parts, self._seen = [], 0
        if self._leads:
            self._books.clear()


class PolicyCache(DynamicCache):
    """A cache that holds exactly the keys which a model's policy may still need.

    ``generate()`` and forward passes that make their own cache get one by themselves; make one where the prompt's
    length has to be declared (see :func:`swaa.declare_prompt`), or to look into it.

    Args:
        model: a model with a policy on it.
        prompt_lengths: real tokens of each sample's prompt, int [B] or one int for all. Policies that differ by phase
            need it where the first forward pass is not just the prompt: chunked prefill, assisted decoding, turns.

    Raises:
        UserError: the model has no policy, or shares keys between layers, so that none can be dropped.
    """

    def __init__(self, model: torch.nn.Module, prompt_lengths: Tensor | int | None = None) -> None:
        config: Any = model.config
        if read_spec(config) is None:
            raise UserError("model: expected a model with a policy, got one without. Call swaa.apply_policy first.")
        super().__init__(config=text_config(config))
        if not evict_in(self, text_config(config)):
            raise UserError(
                f"model: the layers of {text_config(config).model_type!r} share or compress their keys, so none can be "
                f"dropped. Use a DynamicCache."
            )
        if prompt_lengths is not None:
            declare_prompt(self, prompt_lengths)


def evict_in(cache: Cache, config: Any) -> bool:
    """Make an empty cache evict, in place; the policy is told to its layers by attention.

    Args:
        cache: a ``DynamicCache``.
        config: the text config of the model.

    Returns:
        Whether it does: caches whose layers share keys, or hold something else, are left as they are.
    """
    if getattr(config, "num_kv_shared_layers", 0) or getattr(config, "kv_sharing_modes", None):
        return False
    layers = cache.layers or [DynamicLayer() for _ in range(config.num_hidden_layers)]
    attends = [type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers]
    if not any(attends):
        return False
    books, leader = CacheBooks(remembered(cache)), attends.index(True)
    cache.layers = [
        PolicyLayer(books, index == leader) if attends[index] else layer for index, layer in enumerate(layers)
    ]
    cache.layer_class_to_replicate = None
    setattr(cache, BOOKS, books)
    return True


def held_bytes(cache: Cache) -> int:
    """Bytes of the keys and values that a transformers cache holds, spare slots included."""
    storages: dict[int, int] = {}
    for layer in cache.layers:
        parts = getattr(layer, "parts", None) or [layer]
        for tensor in (tensor for part in parts for tensor in (part.keys, part.values)):
            if isinstance(tensor, Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())
