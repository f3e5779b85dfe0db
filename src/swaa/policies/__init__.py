"""Attention policies: the algebra, the compositor, the registry and the zoo. Pure: the standard library alone."""

from swaa.policies.base import AttentionPolicy, Index, Predicate
from swaa.policies.bound import BoundPolicy, HeadPolicy, LayerPolicy, bind
from swaa.policies.compositor import rule, stack
from swaa.policies.describe import policy_to_dict
from swaa.policies.parse import parse_policy
from swaa.policies.piecewise import PHASES, Phase
from swaa.policies.registry import get_policy, load_plugin, policy_names, register_policy
from swaa.policies.selector import every, select
from swaa.policies.zoo import FullAttention, SinkTokens, SlidingWindow

__all__ = [
    "PHASES",
    "AttentionPolicy",
    "BoundPolicy",
    "FullAttention",
    "HeadPolicy",
    "Index",
    "LayerPolicy",
    "Phase",
    "Predicate",
    "SinkTokens",
    "SlidingWindow",
    "bind",
    "every",
    "get_policy",
    "load_plugin",
    "parse_policy",
    "policy_names",
    "policy_to_dict",
    "register_policy",
    "rule",
    "select",
    "stack",
]
