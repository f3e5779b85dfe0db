"""The zoo: the policies that come with swaa, one small file each. Importing this package registers them."""

from swaa.policies.zoo.full_attention import FullAttention
from swaa.policies.zoo.sink_tokens import SinkTokens
from swaa.policies.zoo.sliding_window import SlidingWindow

__all__ = ["FullAttention", "SinkTokens", "SlidingWindow"]
