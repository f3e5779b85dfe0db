"""Random policies that look ahead: the atoms of :mod:`strategies`, two of the zoo's and one of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st

import oracle
import strategies
import swaa
from oracle import Atom
from swaa import Index, Predicate


@dataclass(frozen=True, repr=False)
class Near(Predicate):
    """Keys at most ``reach`` tokens off, on either side."""

    looks_ahead: ClassVar[bool] = True

    reach: int

    def visible(self, q: Index, k: Index) -> Index:
        return abs(q - k) <= self.reach

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


_AHEAD = st.one_of(
    st.builds(Atom, st.just("BidirectionalPrefix"), st.tuples(st.integers(2, 12))),
    st.builds(Atom, st.just("Near"), st.tuples(st.integers(1, 6))),
    st.just(Atom("BidirectionalPrompt")),
)
ATOMS = st.integers(0, 2).flatmap(lambda ahead: _AHEAD if ahead else strategies.ALL_ATOMS)


@contextmanager
def known() -> Iterator[None]:
    """Inside, the loops and ``strategies.build`` know the atoms by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(oracle.ATOMS, "Near", lambda q, k, reach: q - k in range(reach + 1))
        for kind in (swaa.BidirectionalPrefix, swaa.BidirectionalPrompt, Near):
            patch.setitem(strategies.CLASSES, kind.__name__, kind)
        yield
