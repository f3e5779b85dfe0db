"""Sets of layer or head indices that do not know the model's size yet: ``3``, ``[0, -1]``, ``"1::2"``, ``every(4)``.

A selector is a set of pairs *(index, size)*: index ``i`` of a model with ``n`` layers. Such a set is kept in one
canonical form, so that ``"1::2"`` equals ``every(2, start=1)`` and equals the complement of ``"::2"``:

* ``body`` rules the indices far from the end; it is a set of naturals that is periodic from some point on;
* ``tail[j - 1]`` rules the j-th index from the end (``i = n - j``), as another such set, for the few ``j`` at
  which the end of the model matters.

Union, intersection and complement act on the parts, so they need no model either.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from swaa.errors import UserError, invalid

_LARGEST = 4095  # no model is deeper; keeps a slip of the finger from allocating a huge prefix
_LONGEST_PERIOD = 1 << 16  # steps of 97, 89 and 83 together repeat every 716,539 indices, and take seconds
_ACCEPTED = "an int, a slice such as '1::2', a list of these, or every(n, start)"


@dataclass(frozen=True)
class _Naturals:
    """A set of naturals that is periodic in the end: ``prefix`` bits, then ``period`` bits for ever. Canonical."""

    prefix: tuple[bool, ...]
    period: tuple[bool, ...]

    def __contains__(self, i: int) -> bool:
        if i < len(self.prefix):
            return self.prefix[i]
        return self.period[(i - len(self.prefix)) % len(self.period)]

    @classmethod
    def sampled(cls, member: Callable[[int], bool], prefix: int, period: int) -> _Naturals:
        """The set with this membership, which the caller knows to repeat every ``period`` from ``prefix`` on."""
        return cls._canonical([bool(member(i)) for i in range(prefix + period)], prefix)

    @classmethod
    def _canonical(cls, bits: list[bool], prefix: int) -> _Naturals:
        """The set of these bits, of which those from ``prefix`` on repeat for ever."""
        head, cycle = bits[:prefix], bits[prefix:]
        period = len(cycle)
        shortest = next(
            size for size in range(1, period + 1) if period % size == 0 and cycle == cycle[:size] * (period // size)
        )
        cycle = cycle[:shortest]
        while head and head[-1] == cycle[-1]:  # the last prefix bit already follows the period: roll back by one
            head.pop()
            cycle = cycle[-1:] + cycle[:-1]
        return cls(tuple(head), tuple(cycle))

    def combine(self, other: _Naturals, op: Callable[[bool, bool], bool]) -> _Naturals:
        prefix = max(len(self.prefix), len(other.prefix))
        period = math.lcm(len(self.period), len(other.period))
        if period > _LONGEST_PERIOD:
            mend = "Write the indices as a list."
            raise invalid("layers or heads", accepted="steps that fit together", got=f"a period of {period}", mend=mend)
        return _Naturals._canonical(list(map(op, self._bits(prefix + period), other._bits(prefix + period))), prefix)

    def _bits(self, count: int) -> tuple[bool, ...]:
        """Membership of the first ``count`` naturals."""
        repeats = -(-max(0, count - len(self.prefix)) // len(self.period))
        return (self.prefix + self.period * repeats)[:count]


_NONE = _Naturals((), (False,))
_ALL = _Naturals((), (True,))


@dataclass(frozen=True, repr=False)
class IndexSet:
    """A canonical set of layer or head indices; build it with :func:`select` or :func:`every`.

    Two selectors are equal exactly when they choose the same indices at every model size.
    """

    body: _Naturals
    tail: tuple[_Naturals, ...] = ()

    @classmethod
    def sampled(cls, member: Callable[[int, int], bool], *, prefix: int, period: int, tail: int) -> IndexSet:
        """From ``member(i, j)``: is the index ``i``, the ``j``-th from the end, chosen? (``j >= 1``.)"""

        def row(j: int) -> _Naturals:
            return _Naturals.sampled(lambda i: member(i, j), prefix, period)

        return cls._canonical(row(tail + 1), [row(j) for j in range(1, tail + 1)])

    @classmethod
    def _canonical(cls, body: _Naturals, tail: Iterable[_Naturals]) -> IndexSet:
        rows = list(tail)
        while rows and rows[-1] == body:
            rows.pop()
        return cls(body, tuple(rows))

    def _row(self, j: int) -> _Naturals:
        return self.tail[j - 1] if j <= len(self.tail) else self.body

    @lru_cache(maxsize=16384)  # noqa: B019  # the sets are small values; a policy combines the same ones many times
    def _combine(self, other: IndexSet, op: Callable[[bool, bool], bool]) -> IndexSet:
        depth = max(len(self.tail), len(other.tail))
        rows = [self._row(j).combine(other._row(j), op) for j in range(1, depth + 1)]
        return IndexSet._canonical(self.body.combine(other.body, op), rows)

    def __or__(self, other: IndexSet) -> IndexSet:
        return self._combine(other, operator.or_)

    def __and__(self, other: IndexSet) -> IndexSet:
        return self._combine(other, operator.and_)

    def __invert__(self) -> IndexSet:
        return self._combine(EVERYTHING, operator.ne)

    @property
    def sort_key(self) -> tuple[object, ...]:
        """An order for printing: sets that begin earlier come first, the end of the model last."""
        rows = [(row.prefix, row.period) for row in (self.body, *self.tail)]
        first = next((i for i in range(len(self.body.prefix) + len(self.body.period)) if i in self.body), _LARGEST)
        return (first, *rows)

    def indices(self, size: int, *, kind: str, may_be_empty: bool = False) -> tuple[int, ...]:
        """The chosen indices of a model with ``size`` layers (or heads; ``kind`` names them in the error).

        Raises:
            UserError: an index named here does not exist at this size, or (unless ``may_be_empty``) none is chosen.
        """
        furthest = max([len(self.body.prefix), *(len(row.prefix) for row in self.tail)])
        chosen = tuple(i for i in range(size) if i in self._row(size - i))
        if max(furthest, len(self.tail)) > size or not (chosen or may_be_empty):
            if furthest > size:
                problem = f"{kind} {furthest - 1} is out of range"
            elif len(self.tail) > size:
                problem = f"{kind} {-len(self.tail)} is out of range"
            else:
                problem = f"{kind}s={self.to_python()!r} chooses no {kind}"
            raise UserError(
                f"{problem}: this model has {size} {kind}s, numbered 0 to {size - 1} (or -{size} to -1). "
                f"Choose among these."
            )
        return chosen

    def terms(self) -> tuple[int | str, ...]:
        """The shortest list of ints and slices found for this set; :func:`select` of it gives the set back."""
        end = len(self.tail)
        body = _items(self.body)
        if not end:
            return tuple(body)
        if all(row == _NONE for row in self.tail):
            cut = [_with_stop(item, end) for item in body]
            return tuple(cut)
        if all(row in (self.body, _ALL) for row in self.tail):
            return (*body, *(-j for j in range(end, 0, -1) if self._row(j) == _ALL))
        near = [f"{item} & -{j}" for j in range(end, 0, -1) for item in _items(self._row(j))]
        return (*(_with_stop(item, end) for item in body), *(term.removeprefix(": & ") for term in near))

    def to_python(self) -> int | str | list[int | str]:
        """The value to print or store: one int, one string, or a list of these."""
        terms = self.terms()
        return terms[0] if len(terms) == 1 else list(terms)

    def __str__(self) -> str:
        return ", ".join(map(str, self.terms())) or "(none)"

    def __repr__(self) -> str:
        return f"select({self.to_python()!r})"


def _items(naturals: _Naturals) -> list[int | str]:
    """Ints and slices whose union is the set."""
    offset, step = len(naturals.prefix), len(naturals.period)
    left = list(naturals.prefix)
    slices: list[int | str] = []
    for residue, chosen in enumerate(naturals.period):
        if chosen:
            start = offset + residue
            while start >= step and left[start - step : start - step + 1] == [True]:
                start -= step
                left[start] = False
            while start >= step and start - step >= offset:
                start -= step
            slices.append(f"{start or ''}:{f':{step}' if step > 1 else ''}")
    return [*_runs(left), *slices]


def _runs(bits: list[bool]) -> Iterator[int | str]:
    i = 0
    while i < len(bits):
        stop = i
        while stop < len(bits) and bits[stop]:
            stop += 1
        if stop - i > 2:
            yield f"{i or ''}:{stop}"
        else:
            yield from range(i, stop)
        i = stop + 1


def _with_stop(item: int | str, end: int) -> str:
    """The item without the last ``end`` indices."""
    if isinstance(item, str) and "&" not in item:
        start, stop, *step = item.split(":")
        if not stop:
            return ":".join([start, f"-{end}", *step])
    return f"{item} & :-{end}"


NOTHING = IndexSet(_NONE)
EVERYTHING = IndexSet(_ALL)


def select(selector: object, *, field: str = "layers") -> IndexSet:
    """The canonical set for what a user wrote.

    Accepts an int (negative counts from the end), a slice in a string (``"1::2"``, ``":-1"``), several of these
    in a list, ``&`` inside a string for an intersection, a ``slice``, a ``range`` or an :class:`IndexSet`.

    Raises:
        UserError: anything else, or what chooses nothing in any model; the message names ``field``.
    """
    chosen = _select(selector, field)
    if chosen == NOTHING:  # a scope on it would silently be full attention
        raise invalid(field, accepted=_ACCEPTED, got=selector, mend="Name at least one.")
    return chosen


def _select(selector: object, field: str) -> IndexSet:
    if isinstance(selector, IndexSet):
        return selector
    if isinstance(selector, slice):
        return _from_slice(selector, field)
    if isinstance(selector, str):
        return _from_text(selector, field)
    if isinstance(selector, int) and not isinstance(selector, bool):
        return _from_int(selector, field)
    if isinstance(selector, Iterable) and not isinstance(selector, (bytes, dict)):
        union = NOTHING
        for item in selector:
            if isinstance(item, Iterable) and not isinstance(item, (str, IndexSet)):
                raise invalid(field, accepted=_ACCEPTED, got=selector, mend="Write a flat list.")
            union = union | _select(item, field)
        return union
    raise invalid(field, accepted=_ACCEPTED, got=selector, mend="Write for example [0, 3], '1::2' or every(2).")


def every(n: int, start: int = 0) -> IndexSet:
    """Every ``n``-th index from ``start`` on: ``every(4, start=1)`` is 1, 5, 9, …

    >>> from swaa import SlidingWindow
    >>> SlidingWindow(8).on_layers(every(4, start=1))
    SlidingWindow(8).on_layers('1::4')

    Raises:
        UserError: ``n`` is not an int >= 1, or ``start`` is not an int >= 0.
    """
    for name, value, least in (("every.n", n, 1), ("every.start", start, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise invalid(name, accepted=f"an int >= {least}", got=value, mend="Write for example every(2, start=1).")
    return _from_slice(slice(start, None, n), "every")


def _from_int(index: int, field: str) -> IndexSet:
    if abs(index) > _LARGEST:
        raise invalid(field, accepted=f"an index of at most {_LARGEST}", got=index, mend="Check the number.")
    if index >= 0:
        return IndexSet.sampled(lambda i, _: i == index, prefix=index + 1, period=1, tail=0)
    return IndexSet.sampled(lambda _, j: j == -index, prefix=0, period=1, tail=-index)


def _from_slice(part: slice, field: str) -> IndexSet:
    start, stop, step = part.start, part.stop, 1 if part.step is None else part.step
    for value in (start, stop, step):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or abs(value) > _LARGEST):
            raise invalid(
                field, accepted=f"a slice of ints up to {_LARGEST}", got=part, mend="Write 'start:stop:step'."
            )
    if step < 1:
        raise invalid(
            field, accepted="a slice with a step >= 1", got=part, mend="Order does not matter: count upwards."
        )
    bounds = [value for value in (start, stop) if value is not None]
    return IndexSet.sampled(
        lambda i, j: i in range(i + j)[part],
        prefix=max([abs(value) for value in bounds], default=0),
        period=step,
        tail=max([-value for value in bounds if value < 0], default=0),
    )


def _from_text(text: str, field: str) -> IndexSet:
    if "," in text:
        return select(list(text.split(",")), field=field)
    chosen = EVERYTHING
    for part in text.split("&"):
        try:
            numbers = [int(number) if number.strip() else None for number in part.split(":")]
            if len(numbers) == 1 and numbers[0] is not None:
                chosen = chosen & _from_int(numbers[0], field)
            elif 2 <= len(numbers) <= 3:
                chosen = chosen & _from_slice(slice(*numbers), field)
            else:
                raise ValueError(part)
        except UserError:
            raise
        except ValueError:
            mend = "Write for example '3', '-1', '1::2' or '0:8'."
            raise invalid(field, accepted=_ACCEPTED, got=text, mend=mend) from None
    return chosen
