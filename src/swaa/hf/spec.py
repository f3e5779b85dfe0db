"""The policy on a model's config: how it is stored, read back and bound to the model's size.

The text config's attribute ``swaa`` holds ``{"policy": {...}, "kernel": "auto", "evict": true}``, and ``"scores"``
where the model has score modifications. It is plain JSON, so it survives ``deepcopy``, pickling, ``save_pretrained``
and PEFT, and it is where attention finds its policy.
"""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from typing import Any

from swaa.errors import UserError
from swaa.policies import AttentionPolicy, BoundPolicy, LayerPolicy, bind, parse_policy, policy_to_dict
from swaa.policies.scores import CachePositions, LayerScores, Scores, bind_scores, parse_scores, scores_to_list

ATTRIBUTE = "swaa"
"""The config attribute that holds the spec."""

IMPLEMENTATION = "swaa"
"""The name under which attention and masks are registered with transformers."""


def text_config(config: Any) -> Any:
    """The config of the language model inside a possibly multimodal config."""
    return config.get_text_config(decoder=True)


def make_spec(policy: AttentionPolicy, kernel: str, evict: bool, scores: Scores | None = None) -> dict[str, Any]:
    """The JSON form of a policy, and of score modifications beside it, on a model.

    Raises:
        UserError: a predicate or modification in it is not registered, or is a namesake of one that is.
    """
    described = policy_to_dict(policy)
    try:
        same = parse_policy(described) == policy
    except UserError as error:
        raise UserError(
            f"{policy}: {error} Is it a policy of your own? Put @swaa.register_policy on its class."
        ) from error
    if not same:  # attention would run under the namesake
        raise UserError(f"{policy}: another class is registered under this name. Put @swaa.register_policy on yours.")
    spec = {"policy": described, "kernel": kernel, "evict": evict}
    if scores is not None:  # absent otherwise: what was saved without scores stays as it is
        spec["scores"] = _described(scores)
    return spec


def _described(scores: Scores) -> list[dict[str, Any]]:
    described = scores_to_list(scores)
    mend = "Put @swaa.register_score on your class."
    try:
        same = parse_scores(described) == scores
    except UserError as error:
        raise UserError(f"{scores}: {error} Is it a score modification of your own? {mend}") from error
    if not same:
        raise UserError(f"{scores}: another class is registered under this name. {mend}")
    return described


def read_spec(config: Any) -> dict[str, Any] | None:
    """The spec on a config, or None where the model has no policy."""
    spec: dict[str, Any] | None = getattr(text_config(config), ATTRIBUTE, None)
    return spec


def saved_policy(config: Any) -> AttentionPolicy | None:
    """The policy that a config carries, or None.

    Raises:
        UserError: there is one that this version of swaa cannot read.
    """
    spec = read_spec(config)
    if spec is None:
        return None
    try:
        return parse_policy(spec["policy"])
    except (KeyError, TypeError) as error:
        raise UserError(f"config.{ATTRIBUTE}: expected a policy spec, got {spec!r}. Save the model again.") from error


def saved_scores(config: Any) -> Scores | None:
    """The score modifications that a config carries, or None.

    Raises:
        UserError: there are some that this version of swaa cannot read.
    """
    spec = read_spec(config) or {}
    return parse_scores(spec["scores"]) if "scores" in spec else None


class PolicyOnModel:
    """A spec, bound: gives the layer policy and scores for every layer index and number of query heads."""

    def __init__(self, spec: dict[str, Any], num_layers: int) -> None:
        self.policy = parse_policy(spec["policy"])
        self.scores = parse_scores(spec["scores"]) if "scores" in spec else None
        self.kernel: str = spec["kernel"]
        self.evict: bool = spec.get("evict", True)
        self.num_layers = num_layers
        self._bound: dict[int, BoundPolicy] = {}
        self._bound_scores: dict[int, tuple[LayerScores, ...]] = {}

    def bound(self, num_heads: int) -> BoundPolicy:
        """The policy for this many query heads."""
        if num_heads not in self._bound:  # every layer asks in every step, and a policy's hash takes its time
            self._bound[num_heads] = bind(self.policy, self.num_layers, num_heads)
        return self._bound[num_heads]

    def layer(self, index: int, num_heads: int) -> LayerPolicy:
        """The effective policy of one layer."""
        return self.bound(num_heads).layers[index]

    def layer_scores(self, index: int, num_heads: int) -> LayerScores | None:
        """The effective score modifications of one layer; None where there are none."""
        layers = self.bound_scores(num_heads)
        return None if not layers or layers[index].is_nothing else layers[index]

    def bound_scores(self, num_heads: int) -> tuple[LayerScores, ...]:
        """The score modifications of every layer; none at all where the model has none."""
        if self.scores is None:
            return ()
        if num_heads not in self._bound_scores:
            self._bound_scores[num_heads] = bind_scores(self.scores, self.num_layers, num_heads)
        return self._bound_scores[num_heads]

    @cached_property
    def moves_positions(self) -> bool:
        """Do scores count positions in another way, anywhere?"""
        return self.scores is not None and any(
            isinstance(mod, CachePositions)
            for _, split in self.scores.form.cells
            for _, mods in split.cells
            for mod in mods
        )

    @property
    def by_phase(self) -> bool:
        """Do the phases differ anywhere?"""
        return any(behaviour.prefill != behaviour.decode for _, behaviour in self.policy.normal_form.cells)


def policy_on(config: Any) -> PolicyOnModel:
    """The bound policy of a model's config.

    Raises:
        UserError: the config has none, though its attention runs on swaa.
    """
    spec = read_spec(config)
    if spec is None:
        raise UserError(
            f"attn_implementation={IMPLEMENTATION!r} is set, but config.{ATTRIBUTE} holds no policy. "
            f"Use swaa.apply_policy(model, policy) instead of setting the implementation by hand."
        )
    return _policy_on(json.dumps(spec, sort_keys=True), text_config(config).num_hidden_layers)


@lru_cache(maxsize=256)
def _policy_on(spec: str, num_layers: int) -> PolicyOnModel:
    return PolicyOnModel(json.loads(spec), num_layers)
