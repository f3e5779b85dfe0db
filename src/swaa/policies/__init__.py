"""Attention policies: the algebra, the compositor, the registry and the zoo. Pure: the standard library alone."""

from swaa.policies.base import AttentionPolicy, Index, Predicate
from swaa.policies.bound import BoundPolicy, HeadPolicy, LayerPolicy, bind
from swaa.policies.compositor import rule, stack
from swaa.policies.describe import policy_to_dict
from swaa.policies.parse import parse_policy
from swaa.policies.piecewise import PHASES, Phase
from swaa.policies.registry import (
    ZooEntry,
    get_pattern,
    get_policy,
    load_plugin,
    pattern_names,
    policy_names,
    register_pattern,
    register_policy,
    zoo_entries,
)
from swaa.policies.selector import every, select
from swaa.policies.zoo import (
    AShape,
    BlockWindow,
    ChunkedAttention,
    DilatedWindow,
    EveryNthToken,
    FullAttention,
    LogSparse,
    SinkTokens,
    SlidingWindow,
    StreamingLLM,
)

__all__ = [
    "PHASES",
    "AShape",
    "AttentionPolicy",
    "BlockWindow",
    "BoundPolicy",
    "ChunkedAttention",
    "DilatedWindow",
    "EveryNthToken",
    "FullAttention",
    "HeadPolicy",
    "Index",
    "LayerPolicy",
    "LogSparse",
    "Phase",
    "Predicate",
    "SinkTokens",
    "SlidingWindow",
    "StreamingLLM",
    "ZooEntry",
    "bind",
    "every",
    "get_pattern",
    "get_policy",
    "load_plugin",
    "parse_policy",
    "pattern_names",
    "policy_names",
    "policy_to_dict",
    "register_pattern",
    "register_policy",
    "rule",
    "select",
    "stack",
    "zoo_entries",
]
