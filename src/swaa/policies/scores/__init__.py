"""Score modifications: values that stand beside a policy and change attention scores before the softmax. Pure."""

from swaa.policies.scores.alibi import ALiBi
from swaa.policies.scores.base import ScoreMod, Scores
from swaa.policies.scores.bound import LayerScores, bind_scores
from swaa.policies.scores.cache_positions import CachePositions
from swaa.policies.scores.describe import scores_to_list
from swaa.policies.scores.parse import parse_scores
from swaa.policies.scores.registry import get_score, register_score, score_names
from swaa.policies.scores.sink_logits import SinkLogits
from swaa.policies.scores.soft_cap import SoftCap

__all__ = [
    "ALiBi",
    "CachePositions",
    "LayerScores",
    "ScoreMod",
    "Scores",
    "SinkLogits",
    "SoftCap",
    "bind_scores",
    "get_score",
    "parse_scores",
    "register_score",
    "score_names",
    "scores_to_list",
]
