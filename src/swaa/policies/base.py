"""The policy algebra. A policy says which earlier tokens a query may attend to.

:class:`AttentionPolicy` carries the operators; :class:`Predicate` is what an author subclasses: one frozen dataclass
with one method. Everything is a frozen, hashable, canonical value: two policies that mean the same are equal, and
``repr`` prints Python that makes the policy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Protocol, Self

from swaa.errors import invalid
from swaa.policies.boolean import Formula, literal
from swaa.policies.checks import check_int, check_ints
from swaa.policies.piecewise import FULL, PHASES, NormalForm, Phase, causal, pointwise, scoped, uniform
from swaa.policies.selector import select


class Index(Protocol):
    """The operand of a predicate: positions or truth values, of whatever kind the compiler evaluates.

    The same predicate runs on index tensors (the kernel, the dense oracle) and on intervals (block masks, KV
    retention, cost), so it is written with operators only: no ``if``, no ``and``/``or``, no ``min``/``max``.
    """

    def __add__(self, other: Index | int) -> Index: ...
    def __radd__(self, other: int) -> Index: ...
    def __sub__(self, other: Index | int) -> Index: ...
    def __rsub__(self, other: int) -> Index: ...
    def __mul__(self, other: Index | int) -> Index: ...
    def __rmul__(self, other: int) -> Index: ...
    def __floordiv__(self, other: Index | int) -> Index: ...
    def __mod__(self, other: Index | int) -> Index: ...
    def __neg__(self) -> Index: ...
    def __abs__(self) -> Index: ...
    def __lt__(self, other: Index | int) -> Index: ...
    def __le__(self, other: Index | int) -> Index: ...
    def __gt__(self, other: Index | int) -> Index: ...
    def __ge__(self, other: Index | int) -> Index: ...
    def __eq__(self, other: object) -> Index: ...  # type: ignore[override]  # elementwise, as on tensors
    def __ne__(self, other: object) -> Index: ...  # type: ignore[override]
    def __and__(self, other: Index | bool) -> Index: ...
    def __or__(self, other: Index | bool) -> Index: ...
    def __xor__(self, other: Index | bool) -> Index: ...
    def __invert__(self) -> Index: ...


class AttentionPolicy(ABC):
    """Which earlier tokens a query may attend to: a total predicate on (layer, head, phase, query, key position).

    ``a | b`` is visible where either is, ``a & b`` where both are, ``~a`` where ``a`` is not. Causality, padding,
    packing and the cache are not policies: the compiler binds them, so a complement is still causal. The one exception
    are predicates that look ahead, which is possible within a prompt only (see ``BidirectionalPrefix``).

    A scope (:meth:`in_phase`, :meth:`on_layers`, :meth:`on_heads`) restricts where a policy holds; elsewhere it is
    full attention, unless ``otherwise=`` names another policy. So a scope inside a union *widens* the union.
    """

    @property
    @abstractmethod
    def normal_form(self) -> NormalForm:
        """What the policy comes to for every layer, phase and head."""

    def sees_ahead(self) -> bool:
        """Does some query of a prompt see later tokens of it, on some layer and head?"""
        return any(formula.ahead for _, each in self.normal_form.cells for _, formula in each.prefill.cells)

    def __or__(self, other: AttentionPolicy) -> AttentionPolicy:
        return self._pointwise(other, "|")

    def __and__(self, other: AttentionPolicy) -> AttentionPolicy:
        return self._pointwise(other, "&")

    def __invert__(self) -> AttentionPolicy:
        return from_normal_form(pointwise(self.normal_form, FULL, lambda formula, _: ~formula))

    def in_phase(self, phase: str, *, otherwise: AttentionPolicy | None = None) -> AttentionPolicy:
        """This policy for queries of one phase, ``"prefill"`` or ``"decode"``; ``otherwise`` for the other one."""
        return self._scoped(otherwise, phase=check_phase(phase))

    def on_layers(self, layers: object, *, otherwise: AttentionPolicy | None = None) -> AttentionPolicy:
        """This policy on some decoder layers, numbered from 0: an int, a list, ``"1::2"``, ``every(2, start=1)``."""
        return self._scoped(otherwise, layers=select(layers, field="layers"))

    def on_heads(self, heads: object, *, otherwise: AttentionPolicy | None = None) -> AttentionPolicy:
        """This policy on some query heads, numbered from 0 and chosen as layers are."""
        return self._scoped(otherwise, heads=select(heads, field="heads"))

    def _pointwise(self, other: AttentionPolicy, operator: str) -> AttentionPolicy:
        if not isinstance(other, AttentionPolicy):
            mend = "Combine policies with policies, for example SlidingWindow(128) | SinkTokens(4)."
            raise invalid(f"right side of {operator!r}", accepted="an attention policy", got=other, mend=mend)
        if operator == "|":
            return from_normal_form(pointwise(self.normal_form, other.normal_form, Formula.__or__))
        return from_normal_form(pointwise(self.normal_form, other.normal_form, Formula.__and__))

    def _scoped(self, otherwise: AttentionPolicy | None, **where: Any) -> AttentionPolicy:
        if otherwise is not None and not isinstance(otherwise, AttentionPolicy):
            mend = "Leave it out for full attention."
            raise invalid("otherwise", accepted="an attention policy", got=otherwise, mend=mend)
        outside = FULL if otherwise is None else otherwise.normal_form
        return from_normal_form(scoped(self.normal_form, outside, **where))


class Predicate(AttentionPolicy):
    """A policy given by one predicate over logical positions: subclass it to write a new one.

    A subclass is a frozen dataclass with int, bool, float or str fields (or tuples of these), decorated with
    :func:`swaa.register_policy`. It defines :meth:`visible`, :meth:`examples` and, to refuse bad values,
    ``__post_init__`` with :meth:`require_int`.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # for mypy: a subclass is a dataclass

    needs_heads: ClassVar[bool] = False

    looks_ahead: ClassVar[bool] = False
    """Does a query of the prompt see later tokens of the prompt, too, where :meth:`visible` says so?"""
    by_content: ClassVar[bool] = False
    """Does it depend on more than positions? So :class:`swaa.policies.content.ContentPolicy` alone."""

    @abstractmethod
    def visible(self, q: Index, k: Index) -> Index:
        """May the query at logical position ``q`` see the key at logical position ``k``?

        For ``k <= q`` only; where the class ``looks_ahead`` also for later keys, which must lie in the prompt then.

        ``q`` and ``k`` broadcast against each other; positions count the real tokens of a sequence or packed
        document from 0. Use operators only (see :class:`Index`); int fields arrive as tensors inside a kernel.
        """

    @classmethod
    @abstractmethod
    def examples(cls) -> Sequence[Self]:
        """A few instances, edge cases among them: tests, docs and drawings are made from these."""

    def implies(self, other: Predicate) -> bool:
        """Is every pair that this predicate shows also shown by ``other``? False where unknown. For simplifying.

        Pairs with ``k <= q``; where both look ahead, all pairs.
        """
        return self == other

    @property
    def formula(self) -> Formula:
        """The predicate as a formula; only :class:`~swaa.policies.FullAttention` is a constant."""
        return literal(self)

    @property
    def normal_form(self) -> NormalForm:
        return uniform(self.formula)

    @property
    def sort_key(self) -> tuple[object, ...]:
        """Orders predicates by name, then by parameters."""
        kind = type(self)
        where = (kind.__name__, kind.__module__, kind.__qualname__)  # first: namesakes may have other parameters
        return (*where, *(repr_key(value) for value in self.parameters().values()))

    def parameters(self) -> dict[str, Any]:
        """The dataclass fields by name, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def require_int(self, name: str, *, at_least: int, unit: str = "tokens") -> None:
        """Refuse the field unless it is an int of at least ``at_least`` (and below 2**31, beyond every context).

        Call it from ``__post_init__``.

        Raises:
            UserError: names the class, the field, the accepted range and the value.
        """
        owner = type(self).__name__
        alone = len(self.parameters()) == 1
        mend = f"Write for example {owner}({at_least})." if alone else f"Write for example {name}={at_least}."
        check_int(f"{owner}.{name}", getattr(self, name), at_least=at_least, unit=unit, mend=mend)

    def require_ints(self, name: str, *, at_least: int, unit: str = "tokens", ascending: bool = True) -> None:
        """Refuse the field unless it is a tuple of one or more ints of at least ``at_least``, in ascending order.

        Raises:
            UserError: names the class, the field, the item, the accepted range and the value.
        """
        check_ints(
            f"{type(self).__name__}.{name}", getattr(self, name), at_least=at_least, unit=unit, ascending=ascending
        )

    def __repr__(self) -> str:
        values = ", ".join(repr(value) for value in self.parameters().values())
        return f"{type(self).__name__}({values})"


@dataclass(frozen=True, repr=False)
class Composite(AttentionPolicy):
    """A policy made by operators, scopes or :func:`stack`; never built by hand."""

    form: NormalForm

    @property
    def normal_form(self) -> NormalForm:
        return self.form

    def __repr__(self) -> str:
        from swaa.policies.describe import to_python  # describe needs this module

        return to_python(self)


def from_normal_form(form: NormalForm) -> AttentionPolicy:
    """The canonical value for a normal form: the predicate itself where it is one, a composite otherwise."""
    from swaa.policies.zoo.full_attention import FullAttention  # a Predicate, so defined on top of this module

    if form == FULL:
        return FullAttention()
    if len(form.cells) == 1:
        behaviour = form.cells[0][1]
        if behaviour.decode == causal(behaviour.prefill) and len(behaviour.prefill.cells) == 1:
            formula = behaviour.prefill.cells[0][1]
            if len(formula.atoms) == 1 and formula.atoms[0].formula == formula:
                return formula.atoms[0]
    return Composite(form)


def check_phase(phase: object) -> Phase:
    """The phase, or an error that names the two there are."""
    for known in PHASES:
        if phase == known:
            return known
    raise invalid("phase", accepted="'prefill' or 'decode'", got=phase, mend="Leave the phase out for both.")


def repr_key(value: object) -> tuple[str, object]:
    """A sort key for parameter values of mixed types."""
    return (type(value).__name__, value if isinstance(value, (int, float, str)) else repr(value))
