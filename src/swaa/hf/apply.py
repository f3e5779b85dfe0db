"""``apply_policy``: put an attention policy on a transformers model, and take it off again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel

from swaa.compiler.plan import check_kernel_request
from swaa.errors import UserError, invalid
from swaa.hf.attention import register_attention
from swaa.hf.forward import after_forward, before_forward, before_model
from swaa.hf.mark import mark, unmark
from swaa.hf.masks import register_masks
from swaa.hf.rotation import check_turnable
from swaa.hf.sinks import add_sinks, check_sinks, remove_sinks
from swaa.hf.spec import ATTRIBUTE, IMPLEMENTATION, PolicyOnModel, make_spec, text_config
from swaa.policies import AttentionPolicy, parse_policy
from swaa.policies.scores import LayerScores, Scores, parse_scores

register_attention()
register_masks()

ScoresLike = Scores | str | Mapping[str, Any] | Sequence[Any]

_MISSING = object()
NO_ATTENTION = frozenset({"linear_attention", "conv", "mamba", "recurrent", "moe"})
"""transformers' names for layers of hybrid models that do not attend."""


class PolicyHandle:
    """A policy on a model: a context manager, and a handle with :meth:`remove`. Made by :func:`apply_policy`."""

    def __init__(
        self,
        base: PreTrainedModel,
        decoder: PreTrainedModel,
        policy: AttentionPolicy,
        scores: Scores | None,
        spec: dict[str, Any],
    ) -> None:
        self.policy = policy
        self.scores = scores
        self._base = base
        self._decoder = decoder
        self._spec = spec
        """What the config holds as long as no other handle has put a policy on top."""
        self._blocks = 0
        """Blocks of :meth:`using` that are open."""
        self._previous_spec = getattr(decoder.config, ATTRIBUTE, _MISSING)
        self._previous_implementation = decoder.config._attn_implementation
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._marked = False
        self._learning: list[torch.nn.Module] = []
        """Attention modules with a parameter of learned sink logits."""
        self._removed = False

    def _install(self) -> PolicyHandle:
        decoder = self._decoder
        self._learning = add_sinks(decoder, _layer_scores(decoder.config, self._spec))
        if before_forward not in decoder._forward_pre_hooks.values():
            self._hooks = [
                decoder.register_forward_pre_hook(before_forward, with_kwargs=True),
                decoder.register_forward_hook(after_forward, with_kwargs=True),
            ]
            if self._base is not decoder:
                self._hooks.append(self._base.register_forward_pre_hook(before_model, with_kwargs=True))
        setattr(decoder.config, ATTRIBUTE, self._spec)
        decoder.set_attn_implementation(IMPLEMENTATION)
        self._marked = mark(self._base)
        return self

    @contextmanager
    def using(
        self, policy: AttentionPolicy | str | Mapping[str, Any], scores: ScoresLike | None = "keep"
    ) -> Iterator[None]:
        """Inside the block the model runs under another policy, with the kernel and eviction of this handle.

        Cheap, for a teacher's forward pass or a validation within training: nothing is installed or taken off. Blocks
        nest, and leave what is in force outside as it was, after an exception, too. A forward pass keeps its policy for
        its backward pass, wherever that runs.

        Args:
            policy: as in :func:`apply_policy`. ``self.policy`` stays the one that was applied.
            scores: as in :func:`apply_policy`, or ``"keep"`` for those in force outside the block. Sink logits can be
                learned only where those that were applied are.

        Raises:
            UserError: the model cannot run under the policy; this handle has been removed; another policy is on top.
        """
        if self._removed:
            raise UserError(f"{self.policy}: the policy was removed from the model. Apply it again, with apply_policy.")
        self._check_that_nothing_is_on_top()
        outside = self._spec
        config = self._decoder.config
        chosen = outside.get("scores") if scores == "keep" else scores
        changes = None if chosen is None else parse_scores(chosen)
        spec = _checked_spec(
            self._decoder, parse_policy(policy), changes, kernel=outside["kernel"], evict=outside["evict"]
        )
        check_sinks(self._decoder, _layer_scores(config, spec))
        self._put(spec)
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            self._check_that_nothing_is_on_top()
            self._put(outside)

    def _put(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        setattr(self._decoder.config, ATTRIBUTE, spec)

    def _check_that_nothing_is_on_top(self) -> None:
        if getattr(self._decoder.config, ATTRIBUTE, None) is not self._spec:
            raise UserError(
                f"{self.policy}: another policy was applied on top of this one. Remove policies in reverse order."
            )

    def remove(self) -> None:
        """Restore the model exactly as it was before; a second call does nothing.

        Raises:
            UserError: another policy was put on top of this one, or a block of :meth:`using` is open; end that first.
        """
        if self._removed:
            return
        config = self._decoder.config
        self._check_that_nothing_is_on_top()
        if self._blocks:
            raise UserError(
                f"{self.policy}: cannot be removed inside a block of using(). Leave the block, then remove the policy."
            )
        for hook in self._hooks:
            hook.remove()
        if self._marked:
            unmark(self._base)
        remove_sinks(self._learning)
        if self._previous_spec is _MISSING:
            delattr(config, ATTRIBUTE)
        else:
            setattr(config, ATTRIBUTE, self._previous_spec)
        self._decoder.set_attn_implementation(self._previous_implementation)
        self._removed = True

    def __enter__(self) -> PolicyHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"PolicyHandle({self.policy!r}{', removed' if self._removed else ''})"


def apply_policy(
    model: torch.nn.Module,
    policy: AttentionPolicy | str | Mapping[str, Any],
    scores: ScoresLike | None = None,
    *,
    kernel: str = "auto",
    evict: bool = True,
) -> PolicyHandle:
    """Run a transformers model under an attention policy, in prefill, cached decoding, generation and training.

    ``with apply_policy(model, policy): …`` restores the model at the end of the block; otherwise keep the handle and
    call ``remove()``. The policy is written to the model's config, so ``save_pretrained`` keeps it and
    :func:`swaa.load` applies it again; other loaders report the tensor ``policy_is_off_unless_loaded_with_swaa``, or
    refuse it. To save plain weights, remove the policy first.

    A forward pass is one prompt unless told otherwise: pass ``prompt_lengths`` (int tensor [B]: real prompt tokens of
    each sample) to ``model(...)`` for samples that hold prompt and answer, or ``decode_mask`` (bool tensor [B, S]: True
    where a token decodes) where they hold several of each. In ``generate()`` it is known, unless the prompt is read in
    chunks: see :func:`swaa.declare_prompt`.

    Args:
        model: a causal language model of transformers, or a PEFT wrapper around one.
        policy: a policy, an expression such as ``"SlidingWindow(128)"``, or its dict form.
        scores: what becomes of attention scores besides, such as ``ALiBi() + SoftCap(30.0)``, or an expression or its
            list form; None leaves them as they are. The model's own soft cap and sink logits stay, and come first.
            Learned sink logits become parameters of the attention layers, trained and saved with the others.
        kernel: ``"auto"`` (chosen by :func:`swaa.compiler.plan.choose_kernel`), ``"flex"``, ``"blockwise"`` or
            ``"dense"``.
        evict: free cached keys that no token to come may see: an empty ``DynamicCache``, and so ``generate()``'s own,
            becomes a :class:`swaa.PolicyCache`. False masks them only, which computes the same from all keys.

    Raises:
        UserError: the architecture cannot run under a policy, or the policy names a layer or head that it lacks.
    """
    check_kernel_request(kernel)
    parsed = parse_policy(policy)
    base, decoder = base_and_decoder(model)
    changes = None if scores is None else parse_scores(scores)
    spec = _checked_spec(decoder, parsed, changes, kernel=kernel, evict=evict)
    return PolicyHandle(base, decoder, parsed, changes, spec)._install()


def _layer_scores(config: Any, spec: dict[str, Any]) -> Sequence[LayerScores]:
    """The score modifications of every layer; none at all where there are none."""
    return PolicyOnModel(spec, config.num_hidden_layers).bound_scores(config.num_attention_heads)


def _checked_spec(
    decoder: PreTrainedModel, policy: AttentionPolicy, scores: Scores | None, *, kernel: str, evict: bool
) -> dict[str, Any]:
    """The spec of a policy and scores that the model can run under."""
    config: Any = decoder.config
    spec = make_spec(policy, kernel, evict, scores)
    on_model = PolicyOnModel(spec, config.num_hidden_layers)
    layers = on_model.bound(config.num_attention_heads).layers  # refuses what is not there
    restricted = [index for index, layer in enumerate(layers) if not layer.is_full]
    _refuse_where_there_is_no_attention(config, repr(policy), restricted)
    changed = on_model.bound_scores(config.num_attention_heads)
    restricted = [index for index, layer in enumerate(changed) if not layer.is_nothing]
    _refuse_where_there_is_no_attention(config, repr(scores), restricted)
    check_turnable(decoder, changed)
    return spec


def base_and_decoder(model: torch.nn.Module) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The transformers model inside its wrappers, and its text decoder, checked to run under policies."""
    base: Any = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    base = getattr(base, "get_base_model", lambda: base)()
    if not isinstance(base, PreTrainedModel):
        mend = "Load one with swaa.load, and apply the policy before wrapping it (DDP, FSDP)."
        raise invalid("model", accepted="a transformers model", got=type(model).__name__, mend=mend)
    config = base.config
    name = f"{type(base).__name__} (model type {config.model_type!r})"
    if config.is_encoder_decoder:
        raise UserError(
            f"{name}: has an encoder and cross attention, and policies are causal. Use a decoder-only model."
        )
    decoder = base.get_decoder()
    if not isinstance(decoder, PreTrainedModel):  # some models name their output head so
        decoder = base.base_model
    if not isinstance(decoder, PreTrainedModel) or not _dispatches(decoder):
        raise UserError(
            f"{name}: computes attention in its own code instead of dispatching it through transformers' "
            f"AttentionInterface, so no policy can reach it. Use a model that dispatches, such as Llama or Qwen."
        )
    if getattr(text_config(config), "is_causal", True) is False:
        raise UserError(
            f"{name}: is configured for bidirectional attention, and policies are causal. Set is_causal=True."
        )
    return base, decoder


def _refuse_where_there_is_no_attention(config: Any, what: str, layers: Sequence[int]) -> None:
    """Hybrid models have layers that mix tokens by recurrence or convolution, which no policy can restrict.

    Args:
        what: the policy or scores, for the message.
        layers: where it does something.
    """
    kinds = getattr(config, "layer_types", None) or ()
    other = {index: kind for index, kind in enumerate(kinds) if kind in NO_ATTENTION}
    missed = [index for index in layers if index in other]
    if missed:
        attention = [index for index in range(config.num_hidden_layers) if index not in other]
        raise UserError(
            f"{what}: layer {missed[0]} of {config.model_type!r} is {other[missed[0]]!r}, not attention, and "
            f"no policy can restrict it. Name the layers that are attention: .on_layers({attention})."
        )


def _dispatches(decoder: PreTrainedModel) -> bool:
    """Do the decoder's attention layers look their function up in transformers' registry?"""
    modules = {type(module).__module__ for module in decoder.modules()}
    return any(hasattr(sys.modules.get(name), "ALL_ATTENTION_FUNCTIONS") for name in modules)
