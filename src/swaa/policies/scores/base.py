"""The values that change attention scores: :class:`ScoreMod`, which an author subclasses, and sums of these.

A score modification stands beside a mask: the policy says which keys a query sees, the modification what becomes of
their scores before the softmax. Like policies, scores are frozen, hashable, canonical values: two that mean the same
are equal, and ``repr`` prints Python that makes them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Self

from swaa.errors import UserError, invalid
from swaa.policies.piecewise import Split
from swaa.policies.selector import select

Mods = tuple["ScoreMod", ...]
Form = Split[Split[Mods]]
"""Layers -> heads -> what is applied there, first to last; positions always come first and sinks last."""


class Scores(ABC):
    """What becomes of attention scores, in every layer and head.

    ``a + b`` applies ``a`` first. A scope (:meth:`on_layers`, :meth:`on_heads`) leaves the scores elsewhere as they
    are. The model's own soft cap and sink logits stay, and come before everything here.
    """

    @property
    @abstractmethod
    def form(self) -> Form:
        """What is applied in every layer and head."""

    def __add__(self, other: Scores) -> Scores:
        if not isinstance(other, Scores):
            mend = "Add score modifications to score modifications, for example ALiBi() + SoftCap(30.0)."
            raise invalid("right side of '+'", accepted="a score modification", got=other, mend=mend)
        return from_form(self.form.combine(other.form, lambda a, b: a.combine(b, _joined)))

    def on_layers(self, layers: object) -> Scores:
        """These modifications on some decoder layers: an int, a list, ``"1::2"``, ``every(2, start=1)``."""
        return _checked(from_form(self.form.override(select(layers, field="layers"), NO_CHANGE)), "layers", layers)

    def on_heads(self, heads: object) -> Scores:
        """These modifications on some query heads, chosen as layers are."""
        where = select(heads, field="heads")
        nothing = NO_CHANGE.cells[0][1]
        scoped = self.form.combine(NO_CHANGE, lambda inside, _: inside.override(where, nothing))
        return _checked(from_form(scoped), "heads", heads)


class ScoreMod(Scores):
    """One score modification: subclass it to write a new one.

    A subclass is a frozen dataclass with int, float, bool or str fields (or tuples of numbers), decorated with
    :func:`swaa.register_score`. It defines :meth:`modify`, :meth:`examples` and, to refuse bad values,
    ``__post_init__`` with :meth:`require_number`.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # for mypy: a subclass is a dataclass

    @abstractmethod
    def modify(self, score: Any, q: Any, k: Any, head: Any) -> Any:
        """The new score of the query at logical position ``q`` for the key at logical position ``k``.

        All four are tensors that broadcast against each other: ``score`` of floats, already scaled; ``q``, ``k`` and
        the query head's number of ints, with ``0 <= k <= q``: where a policy looks ahead, the later of the two comes as
        ``q``. Numbers in fields arrive as tensors, too, a tuple as one that is indexed: ``self.slopes[head]``. Use
        operators and methods of tensors (``score.tanh()``); no ``if``.
        """

    @classmethod
    @abstractmethod
    def examples(cls) -> Sequence[Self]:
        """A few instances, edge cases among them: tests and docs are made from these."""

    def for_heads(self, num_heads: int) -> ScoreMod:
        """The same for a model of so many query heads; a place to work out a field with a value for each head."""
        return self

    @property
    def form(self) -> Form:
        return Split.constant(Split.constant((self,)))

    def parameters(self) -> dict[str, Any]:
        """The dataclass fields by name, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def require_number(self, name: str, *, above: float | None = None) -> None:
        """Make the field a float, and refuse it unless it is a finite number, ``above`` a bound where there is one.

        Call it from ``__post_init__``.

        Raises:
            UserError: names the class, the field, the accepted range and the value.
        """
        accepted = "a finite number" if above is None else f"a finite number > {above:g}"
        value = getattr(self, name)
        if not is_number(value) or (above is not None and value <= above):
            owner = type(self).__name__
            mend = f"Write for example {owner}({self.examples()[0].parameters()[name]!r})." if above is None else ""
            raise invalid(f"{owner}.{name}", accepted=accepted, got=value, mend=mend or "Choose a larger number.")
        object.__setattr__(self, name, float(value))  # 30 and 30.0 are one value

    def __repr__(self) -> str:
        parts, positional = [], True
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is not MISSING and value == field.default:
                positional = False
            else:
                parts.append(repr(value) if positional else f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class ComposedScores(Scores):
    """Score modifications made by ``+`` and scopes; never built by hand."""

    parts: Form

    @property
    def form(self) -> Form:
        return self.parts

    def __repr__(self) -> str:
        from swaa.policies.scores.describe import scores_to_python  # describe needs this module

        return scores_to_python(self)


NO_CHANGE: Form = Split.constant(Split.constant(()))


def from_form(form: Form) -> Scores:
    """The canonical value: the modification itself where it is one that holds everywhere, a composition otherwise."""
    if len(form.cells) == 1 and len(form.cells[0][1].cells) == 1:
        mods = form.cells[0][1].cells[0][1]
        if len(mods) == 1:
            return mods[0]
    return ComposedScores(form)


def _joined(first: Mods, second: Mods) -> Mods:
    """One after the other; positions at the beginning and sinks at the end, wherever in a sum they stand."""
    from swaa.policies.scores.cache_positions import CachePositions  # ScoreMods, so defined on top of this module
    from swaa.policies.scores.sink_logits import SinkLogits

    mods = (*first, *second)
    positions = sorted({mod for mod in mods if isinstance(mod, CachePositions)}, key=repr)  # twice is once
    sinks = sorted((mod for mod in mods if isinstance(mod, SinkLogits)), key=repr)
    return (*positions, *(mod for mod in mods if not isinstance(mod, CachePositions | SinkLogits)), *sinks)


def _checked(scores: Scores, keyword: str, where: object) -> Scores:
    """A scope within a scope may leave nothing, which would quietly do nothing."""
    if scores.form == NO_CHANGE:
        raise UserError(f"{keyword}: {where!r} shares no index with the scope inside it. Choose {keyword} that it has.")
    return scores


def is_number(value: object) -> bool:
    """Is it a finite number, and not a truth value?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
