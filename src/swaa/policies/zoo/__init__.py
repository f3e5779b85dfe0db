"""The zoo: the policies and patterns that come with swaa, one small file each. Importing it registers them."""

from swaa.policies.zoo.a_shape import AShape
from swaa.policies.zoo.block_window import BlockWindow
from swaa.policies.zoo.chunked_attention import ChunkedAttention
from swaa.policies.zoo.dilated_window import DilatedWindow
from swaa.policies.zoo.every_nth_token import EveryNthToken
from swaa.policies.zoo.full_attention import FullAttention
from swaa.policies.zoo.log_sparse import LogSparse
from swaa.policies.zoo.sink_tokens import SinkTokens
from swaa.policies.zoo.sliding_window import SlidingWindow
from swaa.policies.zoo.streaming_llm import StreamingLLM

__all__ = [
    "AShape",
    "BlockWindow",
    "ChunkedAttention",
    "DilatedWindow",
    "EveryNthToken",
    "FullAttention",
    "LogSparse",
    "SinkTokens",
    "SlidingWindow",
    "StreamingLLM",
]
