"""Boolean formulas over predicates, in one canonical form.

A formula is kept as an irredundant union of prime implicants, computed from its truth table. The table counts only
*consistent* assignments: where one predicate implies another (a window of 4 implies a window of 8), an assignment
that says otherwise cannot happen and is a don't-care. So ``A | (A & B)`` becomes ``A``, and
``SlidingWindow(4) | SlidingWindow(8)`` becomes ``SlidingWindow(8)``.

Sources: W. V. Quine, "The Problem of Simplifying Truth Functions" (1952); E. J. McCluskey, "Minimization of Boolean
Functions" (1956).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from swaa.errors import UserError

if TYPE_CHECKING:
    from swaa.policies.base import Predicate

MOST_ATOMS = 10
"""A formula may combine this many distinct predicates: its truth table has 2**10 rows."""

Assignment = tuple[bool, ...]
_Cube = tuple[bool | None, ...]  # one entry per atom; None where the atom does not matter


@dataclass(frozen=True)
class Formula:
    """A union of terms; a term is an intersection of literals *(predicate, is it asserted)*. Canonical.

    ``Formula(((),))`` holds everywhere and ``Formula(())`` nowhere.
    """

    terms: tuple[tuple[tuple[Predicate, bool], ...], ...]

    @property
    def atoms(self) -> tuple[Predicate, ...]:
        """The distinct predicates, sorted."""
        return tuple(sorted({atom for term in self.terms for atom, _ in term}, key=lambda atom: atom.sort_key))

    def holds(self, values: dict[Predicate, bool]) -> bool:
        """The formula's truth where each predicate has the given truth."""
        return any(all(values[atom] == asserted for atom, asserted in term) for term in self.terms)

    def __or__(self, other: Formula) -> Formula:
        return _canonical(self, other, lambda a, b: a or b)

    def __and__(self, other: Formula) -> Formula:
        return _canonical(self, other, lambda a, b: a and b)

    def __invert__(self) -> Formula:
        return _canonical(self, NOWHERE, lambda a, _: not a)

    @property
    def sort_key(self) -> tuple[object, ...]:
        return tuple(tuple((atom.sort_key, asserted) for atom, asserted in term) for term in self.terms)


NOWHERE = Formula(())
EVERYWHERE = Formula(((),))


def literal(atom: Predicate) -> Formula:
    """The formula that is one predicate."""
    return Formula((((atom, True),),))


def _assignments(count: int) -> Iterator[Assignment]:
    for row in range(1 << count):
        yield tuple(bool(row >> bit & 1) for bit in range(count))


@lru_cache(maxsize=65536)
def _canonical_table(atoms: tuple[Predicate, ...], on: frozenset[Assignment]) -> Formula:
    """The canonical formula over sorted ``atoms`` that holds at the consistent assignments ``on``, and only there."""
    implied = [(a, b) for a in range(len(atoms)) for b in range(len(atoms)) if a != b and atoms[a].implies(atoms[b])]
    possible = {row for row in _assignments(len(atoms)) if not any(row[a] and not row[b] for a, b in implied)}
    on = on & possible
    for position in range(len(atoms)):
        if _independent(on, possible, position):
            rest = atoms[:position] + atoms[position + 1 :]
            return _canonical_table(rest, frozenset(row[:position] + row[position + 1 :] for row in on))
    off = possible - on
    if not off:
        return EVERYWHERE
    primes = _primes(on, off, len(atoms))
    return Formula(tuple(_term(atoms, cube) for cube in _cover(on, primes)))


def _canonical(left: Formula, right: Formula, op: Callable[[bool, bool], bool]) -> Formula:
    atoms = tuple(sorted({*left.atoms, *right.atoms}, key=lambda atom: atom.sort_key))
    if len(atoms) > MOST_ATOMS:
        raise UserError(
            f"policy: expected at most {MOST_ATOMS} different predicates in one place, got {len(atoms)}. "
            f"Write the combination as one predicate of your own."
        )
    rows = (dict(zip(atoms, row, strict=True)) for row in _assignments(len(atoms)))
    on = frozenset(tuple(row.values()) for row in rows if op(left.holds(row), right.holds(row)))
    return _canonical_table(atoms, on)


def _independent(on: frozenset[Assignment], possible: set[Assignment], position: int) -> bool:
    """Does the atom at ``position`` make no difference wherever both its values are possible?"""
    for row in possible:
        flipped = (*row[:position], not row[position], *row[position + 1 :])
        if flipped in possible and (row in on) != (flipped in on):
            return False
    return True


def _primes(on: frozenset[Assignment], off: set[Assignment], count: int) -> list[_Cube]:
    """The largest cubes that touch ``on`` and miss ``off``; don't-cares may lie inside."""

    def is_implicant(cube: _Cube) -> bool:
        return not any(_covers(cube, row) for row in off)

    primes: set[_Cube] = set()
    frontier: set[_Cube] = set(on)
    while frontier:
        wider: set[_Cube] = set()
        for cube in frontier:
            grown = {(*cube[:i], None, *cube[i + 1 :]) for i in range(count) if cube[i] is not None}
            grown = {candidate for candidate in grown if is_implicant(candidate)}
            if not grown:
                primes.add(cube)
            wider |= grown
        frontier = wider
    return sorted(primes, key=_cube_key)


def _cover(on: frozenset[Assignment], primes: list[_Cube]) -> list[_Cube]:
    """A subset of ``primes`` that covers ``on`` and has no member to spare, chosen by a fixed order."""
    chosen = list(primes)
    for cube in reversed(primes):  # drop the longest first
        rest = [other for other in chosen if other != cube]
        if all(any(_covers(other, row) for other in rest) for row in on):
            chosen = rest
    return sorted(chosen, key=lambda cube: [-1 if value is None else int(not value) for value in cube])


def _covers(cube: _Cube, row: Assignment) -> bool:
    return all(value is None or value == bit for value, bit in zip(cube, row, strict=True))


def _cube_key(cube: _Cube) -> tuple[int, list[int]]:
    return (sum(value is not None for value in cube), [2 if value is None else int(not value) for value in cube])


def _term(atoms: tuple[Predicate, ...], cube: _Cube) -> tuple[tuple[Predicate, bool], ...]:
    return tuple((atom, value) for atom, value in zip(atoms, cube, strict=True) if value is not None)
