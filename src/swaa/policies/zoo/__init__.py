"""The zoo: the policies and patterns that come with swaa, one small file each. Importing it registers them."""

from swaa.policies.zoo.a_shape import AShape
from swaa.policies.zoo.big_bird import BigBird
from swaa.policies.zoo.block_window import BlockWindow
from swaa.policies.zoo.chunked_attention import ChunkedAttention
from swaa.policies.zoo.dilated_window import DilatedWindow
from swaa.policies.zoo.document_isolation import DocumentIsolation
from swaa.policies.zoo.every_nth_token import EveryNthToken
from swaa.policies.zoo.fixed_attention import FixedAttention
from swaa.policies.zoo.full_attention import FullAttention
from swaa.policies.zoo.global_tokens import GlobalTokens
from swaa.policies.zoo.interleaved_layers import InterleavedLayers
from swaa.policies.zoo.lazy_layers import LazyLayers
from swaa.policies.zoo.lm_infinite import LMInfinite
from swaa.policies.zoo.log_sparse import LogSparse
from swaa.policies.zoo.longformer import Longformer
from swaa.policies.zoo.prefix_lm import BidirectionalPrefix, BidirectionalPrompt, PrefixLM
from swaa.policies.zoo.random_blocks import RandomBlocks
from swaa.policies.zoo.random_keys import RandomKeys
from swaa.policies.zoo.sink_tokens import SinkTokens
from swaa.policies.zoo.slash_lines import SlashLines
from swaa.policies.zoo.sliding_window import SlidingWindow
from swaa.policies.zoo.streaming_heads import StreamingHeads
from swaa.policies.zoo.streaming_llm import StreamingLLM
from swaa.policies.zoo.strided_attention import StridedAttention
from swaa.policies.zoo.top_blocks import TopBlocks
from swaa.policies.zoo.vertical_lines import VerticalLines
from swaa.policies.zoo.vertical_slash import VerticalSlash
from swaa.policies.zoo.window_pyramid import WindowPyramid
from swaa.policies.zoo.windows_by_layer import WindowsByLayer
from swaa.policies.zoo.windows_by_phase import WindowsByPhase

__all__ = [
    "AShape",
    "BidirectionalPrefix",
    "BidirectionalPrompt",
    "BigBird",
    "BlockWindow",
    "ChunkedAttention",
    "DilatedWindow",
    "DocumentIsolation",
    "EveryNthToken",
    "FixedAttention",
    "FullAttention",
    "GlobalTokens",
    "InterleavedLayers",
    "LMInfinite",
    "LazyLayers",
    "LogSparse",
    "Longformer",
    "PrefixLM",
    "RandomBlocks",
    "RandomKeys",
    "SinkTokens",
    "SlashLines",
    "SlidingWindow",
    "StreamingHeads",
    "StreamingLLM",
    "StridedAttention",
    "TopBlocks",
    "VerticalLines",
    "VerticalSlash",
    "WindowPyramid",
    "WindowsByLayer",
    "WindowsByPhase",
]
