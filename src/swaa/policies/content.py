"""Policies that choose by content: blocks of keys, picked in each forward pass by what queries and keys say.

A :class:`ContentPolicy` is an atom of the algebra like any other predicate. What it shows is not a function of
positions, so it has no ``visible``; it has :meth:`ContentPolicy.select`, which gets the mean key of every block. What
can be known without queries and keys (costs, drawings, which keys may go) is known of it only as a bound.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from swaa.errors import UserError
from swaa.policies.base import Index, Predicate

if TYPE_CHECKING:  # `import swaa` must not load torch
    from torch import Tensor


class ContentPolicy(Predicate):
    """A policy that shows each query some blocks of keys, chosen by the mean of their keys.

    Block ``b`` holds the positions ``b * block_size`` to ``(b + 1) * block_size - 1`` of a sequence or packed document;
    padding is in none. Each query chooses for itself, among the blocks that end before its own begins: so what it sees
    does not depend on later tokens, and is the same in one pass, in chunks and in cached decoding. Its own block it
    always sees, causally.

    A subclass is a frozen dataclass with an int field ``block_size`` (tokens), decorated with
    :func:`swaa.register_policy`; it defines :meth:`select` and :meth:`examples`.

    Keys cannot be freed under it: without them the means of their blocks would be others.
    """

    by_content: ClassVar[bool] = True
    block_size: int

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.looks_ahead:
            raise UserError(
                f"{cls.__name__}: chooses by content and looks ahead, and a choice of later blocks could not be "
                f"repeated with a cache. Leave out looks_ahead."
            )

    @abstractmethod
    def select(self, query: Tensor, key_means: Tensor, candidates: Tensor) -> Tensor:
        """The blocks that each query chooses.

        A query's choice must depend on its own vector and on its candidates alone. The queries come some at a time.

        Args:
            query: float32 [B, H, Q, D], after the positional rotation, as the layer multiplies them with keys.
            key_means: float32 [B, H, N, D]: the mean key of each block; query heads that share a KV head have the same.
            candidates: bool [B, H, Q, N]: the blocks that are complete and earlier than the query's own, in its
                document. What is chosen beside them is dropped.

        Returns:
            bool [B, H, Q, N].
        """

    @property
    def most_blocks(self) -> int | None:
        """At most so many blocks does a query choose beside its own; None where that is unknown. Bounds the cost."""
        return None

    def visible(self, q: Index, k: Index) -> Any:
        """Refused: positions do not tell what is chosen.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self!r}: what it shows depends on queries and keys, and here only positions are known. Run it on a "
            f"model, or read its bounds with swaa.compiler.cofactors.possible and certain."
        )
