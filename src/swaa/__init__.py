"""swaa: write an attention policy once, as one predicate over positions; run it on any full-attention HF model."""

from typing import TYPE_CHECKING, Any

from swaa.errors import UserError
from swaa.policies import (
    AShape,
    AttentionPolicy,
    BidirectionalPrefix,
    BidirectionalPrompt,
    BigBird,
    BlockWindow,
    ChunkedAttention,
    ContentPolicy,
    DilatedWindow,
    DocumentIsolation,
    EveryNthToken,
    FixedAttention,
    FullAttention,
    GlobalTokens,
    Index,
    InterleavedLayers,
    LazyLayers,
    LMInfinite,
    LogSparse,
    Longformer,
    Predicate,
    PrefixLM,
    RandomBlocks,
    RandomKeys,
    SinkTokens,
    SlashLines,
    SlidingWindow,
    StreamingHeads,
    StreamingLLM,
    StridedAttention,
    TopBlocks,
    VerticalLines,
    VerticalSlash,
    WindowPyramid,
    WindowsByLayer,
    WindowsByPhase,
    every,
    parse_policy,
    policy_names,
    policy_to_dict,
    register_pattern,
    register_policy,
    rule,
    stack,
)
from swaa.policies.scores import (
    ALiBi,
    CachePositions,
    ScoreMod,
    Scores,
    SinkLogits,
    SoftCap,
    parse_scores,
    register_score,
    score_names,
    scores_to_list,
)

if TYPE_CHECKING:
    from swaa.hf import PolicyCache, PolicyHandle, apply_policy, declare_prompt, load, saved_policy

__version__ = "0.1.0"

__all__ = [
    "ALiBi",
    "AShape",
    "AttentionPolicy",
    "BidirectionalPrefix",
    "BidirectionalPrompt",
    "BigBird",
    "BlockWindow",
    "CachePositions",
    "ChunkedAttention",
    "ContentPolicy",
    "DilatedWindow",
    "DocumentIsolation",
    "EveryNthToken",
    "FixedAttention",
    "FullAttention",
    "GlobalTokens",
    "Index",
    "InterleavedLayers",
    "LMInfinite",
    "LazyLayers",
    "LogSparse",
    "Longformer",
    "PolicyCache",
    "PolicyHandle",
    "Predicate",
    "PrefixLM",
    "RandomBlocks",
    "RandomKeys",
    "ScoreMod",
    "Scores",
    "SinkLogits",
    "SinkTokens",
    "SlashLines",
    "SlidingWindow",
    "SoftCap",
    "StreamingHeads",
    "StreamingLLM",
    "StridedAttention",
    "TopBlocks",
    "UserError",
    "VerticalLines",
    "VerticalSlash",
    "WindowPyramid",
    "WindowsByLayer",
    "WindowsByPhase",
    "apply_policy",
    "declare_prompt",
    "every",
    "load",
    "parse_policy",
    "parse_scores",
    "policy_names",
    "policy_to_dict",
    "register_pattern",
    "register_policy",
    "register_score",
    "rule",
    "saved_policy",
    "score_names",
    "scores_to_list",
    "stack",
]

_NEED_TRANSFORMERS = frozenset(
    {"PolicyCache", "PolicyHandle", "apply_policy", "declare_prompt", "load", "saved_policy"}
)


def __getattr__(name: str) -> Any:
    """Import transformers on first use only: it takes seconds, and policies do not need it."""
    if name in _NEED_TRANSFORMERS:
        import swaa.hf

        return getattr(swaa.hf, name)
    raise AttributeError(f"module 'swaa' has no attribute {name!r}")
