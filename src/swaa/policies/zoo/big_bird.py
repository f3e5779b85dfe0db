"""The causal part of BigBird."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_int
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.block_window import BlockWindow
from swaa.policies.zoo.random_blocks import RandomBlocks
from swaa.policies.zoo.sink_tokens import SinkTokens


@register_pattern(examples=((64,), (4, 2, 1, 2), (4, 1, 0, 0)))
def BigBird(
    block_size: int, window_blocks: int = 2, global_blocks: int = 2, random_blocks: int = 3, seed: int = 0
) -> AttentionPolicy:
    """A window of blocks, the first blocks and random ones: comes to ``BlockWindow(block_size, window_blocks) |
    SinkTokens(global_blocks * block_size) | RandomBlocks(block_size, (seed, seed + 1, …))``.

    Causal, as all policies: of the paper's window of three blocks, the own one and the one before. The numbers are
    those of its base model (ITC). It draws other random blocks for each head; here they are the same for all.

    Args:
        block_size: tokens of a block, at least 1 (the paper: 64).
        window_blocks: blocks of the window, the query's own included, at least 1 (the paper: 3, one of them ahead).
        global_blocks: first blocks that all see, at least 0 (the paper: 2).
        random_blocks: earlier blocks drawn for each query block, at least 0 (the paper: 3).
        seed: of the first draw, at least 0.

    Raises:
        UserError: a value is out of its range.

    Source: Zaheer et al., "Big Bird" (arXiv 2007.14062).
    """
    check_int("BigBird.block_size", block_size, at_least=1)
    check_int("BigBird.window_blocks", window_blocks, at_least=1, unit="blocks")
    policy: AttentionPolicy = BlockWindow(block_size, window_blocks)
    if check_int("BigBird.global_blocks", global_blocks, at_least=0, unit="blocks"):
        policy = policy | SinkTokens(global_blocks * block_size)
    check_int("BigBird.seed", seed, at_least=0, unit="a seed")
    if check_int("BigBird.random_blocks", random_blocks, at_least=0, unit="blocks"):
        policy = policy | RandomBlocks(block_size, tuple(range(seed, seed + random_blocks)))
    return policy
