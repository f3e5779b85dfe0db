"""Boolean formulas over predicates, in one canonical form.

A formula is kept as an irredundant union of prime implicants, computed from its truth table. The table counts only
*consistent* assignments: where one predicate implies another (a window of 4 implies a window of 8), an assignment
that says otherwise cannot happen and is a don't-care. So ``A | (A & B)`` becomes ``A``, and
``SlidingWindow(4) | SlidingWindow(8)`` becomes ``SlidingWindow(8)``.

A formula has a second part, for the keys *ahead* of a query. A few predicates look ahead; ``|`` and ``&`` act on both
parts, and the complement of anything is causal again. Seen as sets of pairs, ``~a`` is what full attention shows and
``a`` does not; so all laws of the algebra hold of what is visible of earlier keys, and ahead those that have no ``~``.

Sources: W. V. Quine, "The Problem of Simplifying Truth Functions" (1952); E. J. McCluskey, "Minimization of Boolean
Functions" (1956).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from swaa.errors import UserError

if TYPE_CHECKING:
    from swaa.policies.base import Predicate

MOST_ATOMS = 10
"""A formula may combine this many distinct predicates: its truth table has 2**10 rows."""

Term = tuple[tuple["Predicate", bool], ...]
Terms = tuple[Term, ...]
_Rows = int  # a set of assignments: bit r for row r of the truth table, in which atom i is true iff r has bit i
_Cube = tuple[bool | None, ...]  # one entry per atom; None where the atom does not matter


@dataclass(frozen=True)
class Formula:
    """A union of terms; a term is an intersection of literals *(predicate, is it asserted)*. Canonical.

    ``Formula(((),))`` holds everywhere and ``Formula(())`` nowhere.

    Attributes:
        terms: what is visible of earlier keys and of the query's own.
        ahead: the terms of what is visible of later keys; only of predicates that look ahead, never denied. What they
            say of earlier keys is visible, too: no operator can make a formula of which that is not so.
    """

    terms: Terms
    ahead: Terms = ()

    @property
    def atoms(self) -> tuple[Predicate, ...]:
        """The distinct predicates, sorted."""
        found = {atom for term in (*self.terms, *self.ahead) for atom, _ in term}
        return tuple(sorted(found, key=lambda atom: atom.sort_key))

    @property
    def causal(self) -> Formula:
        """The formula without what it shows ahead."""
        return Formula(self.terms) if self.ahead else self

    @property
    def beyond(self) -> Formula:
        """What it shows ahead, as a formula that is asked of later keys alone."""
        return Formula(self.ahead)

    @property
    def by_content(self) -> bool:
        """Does the formula depend on more than positions?"""
        return any(atom.by_content for term in self.terms for atom, _ in term)

    def __or__(self, other: Formula) -> Formula:
        return _both(self, other, operator.or_)

    def __and__(self, other: Formula) -> Formula:
        return _both(self, other, operator.and_)

    def __invert__(self) -> Formula:
        return _canonical(self, NOWHERE, lambda a, _: ~a)


NOWHERE = Formula(())
EVERYWHERE = Formula(((),))


def literal(atom: Predicate) -> Formula:
    """The formula that is one predicate."""
    terms = (((atom, True),),)
    return Formula(terms, terms if atom.looks_ahead else ())


def _both(left: Formula, right: Formula, op: Callable[[_Rows, _Rows], _Rows]) -> Formula:
    """A union or an intersection, on earlier keys and on those ahead."""
    causal = _canonical(left, right, op)
    if not (left.ahead or right.ahead):
        return causal
    return Formula(causal.terms, _canonical(left.beyond, right.beyond, op).terms)


@cache
def _columns(count: int) -> tuple[_Rows, ...]:
    """For each of ``count`` atoms, the assignments in which it is true."""
    return tuple(sum(1 << row for row in range(1 << count) if row >> position & 1) for position in range(count))


def _canonical(left: Formula, right: Formula, op: Callable[[_Rows, _Rows], _Rows]) -> Formula:
    """``op`` of what two formulas say of earlier keys."""
    atoms = Formula((*left.terms, *right.terms)).atoms
    if len(atoms) > MOST_ATOMS:
        raise UserError(
            f"policy: expected at most {MOST_ATOMS} different predicates in one place, got {len(atoms)}. "
            f"Write the combination as one predicate of your own."
        )
    return _canonical_table(atoms, op(_table(left, atoms), _table(right, atoms)) & _all_rows(len(atoms)))


def _table(formula: Formula, atoms: tuple[Predicate, ...]) -> _Rows:
    """The assignments at which the formula holds of earlier keys."""
    column = dict(zip(atoms, _columns(len(atoms)), strict=True))
    table = 0
    for term in formula.terms:
        rows = _all_rows(len(atoms))
        for atom, asserted in term:
            rows &= column[atom] if asserted else ~column[atom]
        table |= rows
    return table


@lru_cache(maxsize=65536)
def _canonical_table(atoms: tuple[Predicate, ...], on: _Rows) -> Formula:
    """The canonical formula over sorted ``atoms`` that holds at the consistent assignments ``on``, and only there."""
    columns = _columns(len(atoms))
    possible = _all_rows(len(atoms))
    for a, here in enumerate(atoms):
        for b, other in enumerate(atoms):
            if a != b and here.implies(other):
                possible &= ~(columns[a] & ~columns[b])
    on &= possible
    for position in range(len(atoms)):
        if _independent(on, possible, position, columns[position]):
            rest = atoms[:position] + atoms[position + 1 :]
            return _canonical_table(rest, _without(on, position, len(atoms)))
    off = possible & ~on
    if not off:
        return EVERYWHERE
    return Formula(tuple(_term(atoms, cube) for cube in _cover(on, _primes(on, off, len(atoms)))))


def _all_rows(count: int) -> _Rows:
    return (1 << (1 << count)) - 1


def _independent(on: _Rows, possible: _Rows, position: int, column: _Rows) -> bool:
    """Does the atom at ``position`` make no difference wherever both its values are possible?"""
    flip = 1 << position  # from a row in which the atom is false to the row in which it is true
    both = possible & (possible >> flip) & ~column
    return not (on ^ (on >> flip)) & both


def _without(on: _Rows, position: int, count: int) -> _Rows:
    """The same assignments with the atom at ``position`` left out."""
    low = (1 << position) - 1
    rest = 0
    for row in range(1 << count):
        if on >> row & 1:
            rest |= 1 << (row & low | (row >> position + 1) << position)
    return rest


def _primes(on: _Rows, off: _Rows, count: int) -> list[tuple[_Cube, _Rows]]:
    """The largest cubes that touch ``on`` and miss ``off``, with their rows; don't-cares may lie inside."""
    primes: dict[_Cube, _Rows] = {}
    frontier: dict[_Cube, _Rows] = {
        tuple(bool(row >> i & 1) for i in range(count)): 1 << row for row in range(1 << count) if on >> row & 1
    }
    while frontier:
        wider: dict[_Cube, _Rows] = {}
        for cube, rows in frontier.items():
            is_prime = True
            for i, value in enumerate(cube):
                if value is not None:
                    grown = rows | (rows >> (1 << i) if value else rows << (1 << i))
                    if not grown & off:
                        is_prime = False
                        wider[*cube[:i], None, *cube[i + 1 :]] = grown
            if is_prime:
                primes[cube] = rows
        frontier = wider
    return sorted(primes.items(), key=lambda item: _cube_key(item[0]))


def _cover(on: _Rows, primes: list[tuple[_Cube, _Rows]]) -> list[_Cube]:
    """A subset of ``primes`` that covers ``on`` and has no member to spare, chosen by a fixed order."""
    before = [0, *accumulate((rows for _, rows in primes), operator.or_)]
    chosen: list[_Cube] = []
    kept = 0
    for (cube, rows), earlier in zip(reversed(primes), reversed(before[:-1]), strict=True):  # drop the longest first
        if on & ~(earlier | kept):
            chosen.append(cube)
            kept |= rows
    return sorted(chosen, key=lambda cube: [-1 if value is None else int(not value) for value in cube])


def _cube_key(cube: _Cube) -> tuple[int, list[int]]:
    return (sum(value is not None for value in cube), [2 if value is None else int(not value) for value in cube])


def _term(atoms: tuple[Predicate, ...], cube: _Cube) -> Term:
    return tuple((atom, value) for atom, value in zip(atoms, cube, strict=True) if value is not None)
