"""The probe: how well a model answers the calibration items when chosen units keep full attention.

An item is scored as in teacher forcing: prompt and answer in one row, the prompt's tokens under the prefill policy, the
answer's under the decode policy; the first answer token is predicted by the last prompt token.

Shapes: B rows, A answer tokens (right-aligned), N items, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from swaa.compiler.plan import check_kernel_request
from swaa.engine.decode import accepts
from swaa.engine.grid import context_of
from swaa.errors import UserError
from swaa.hf import apply_policy, model_shape
from swaa.hf.layers import decoder_layers
from swaa.hf.spec import ATTRIBUTE, saved_policy, saved_scores, text_config
from swaa.policies import AttentionPolicy, FullAttention
from swaa.reading import check_choice, check_items, check_whole
from swaa.search.book import ScoreBook
from swaa.search.calibration import Item, ItemBatch, make_batches
from swaa.search.choices import Choice, Unit, layer_of, policy_of
from swaa.search.prefix import KeptStates, is_close

log = logging.getLogger(__name__)

METRICS = ("nll", "kl", "exact")
"""``nll``: mean negative log-likelihood of the answer, nats a token; ``kl``: mean KL divergence from full attention
over the answer's positions, nats; ``exact``: 1 where every answer token is the likeliest, given those before it."""

Tell = Callable[[str, int, int], None]
"""``(what, done, total)``: called as a scorer goes on, in the scorer's own steps."""

_MEMORY = 1 << 30


class Probe:
    """A model, items and a base policy: measures choices, and remembers what it has measured.

    Args:
        model: of transformers, with no policy on it but full attention; in between two measurements it is as it was.
        items: the calibration samples.
        base: what holds on units that are not chosen.
        batch_size: items that run together.
        book: where values are kept and looked up; None for one in memory.
        kernel: which attention kernel runs the policies, as of :func:`swaa.apply_policy`.
        progress: called as scorers go on.
        memory: bytes for the kept states of :meth:`start_from`.

    Raises:
        UserError: the model has a policy on it, or has layers that no policy can restrict; an item is longer than its
            context; there are no items; the kernel is none.
    """

    def __init__(
        self,
        model: Any,
        items: Sequence[Item],
        base: AttentionPolicy,
        *,
        batch_size: int = 4,
        book: ScoreBook | None = None,
        kernel: str = "auto",
        progress: Tell | None = None,
        memory: int = _MEMORY,
    ) -> None:
        check_items("Probe.items", list(items), of="item", mend="Make some with calibration_items.")
        check_whole("Probe.batch_size", batch_size, minimum=1)
        check_whole("Probe.memory", memory, minimum=0)
        check_kernel_request(kernel)
        on_it, scores = saved_policy(model.config), saved_scores(model.config)
        if on_it not in (None, FullAttention()) or scores is not None:
            raise UserError(
                f"Probe.model: expected one without a policy on it, as the probe puts on its own, got {on_it!r}"
                f"{'' if scores is None else f' with {scores!r}'}. Remove it, or apply FullAttention() on top."
            )
        self.model, self.items, self.base, self.batch_size = model, tuple(items), base, batch_size
        self.kernel = kernel
        shape = model_shape(model)
        self.num_layers, self.num_heads = shape.num_layers, shape.num_heads
        self.book = ScoreBook() if book is None else book
        self.subject = _subject(model, self.items, base, kernel)
        """What is measured, for the score book: a digest of model, items, base policy and kernel."""
        self.batches = tuple(batch.to(model.device) for batch in make_batches(items, batch_size=batch_size))
        self._check_fits()
        with apply_policy(model, base, kernel=kernel):  # refuses a model whose layers cannot be restricted
            pass
        self._progress = progress
        self._layers_run = 0
        states = {"bytes_per_token": shape.hidden_size * shape.bytes_per_value, "memory": memory}
        self._kept = KeptStates(decoder_layers(model), self.batches, **states)
        self._reference: Choice | None = None
        self._proven = False
        self._full: dict[int, Tensor] = {}  # of each item, float32 [A, V]: log-probabilities under full attention

    @property
    def all_layers(self) -> Choice:
        """The choice of every layer: full attention."""
        return frozenset(range(self.num_layers))

    @property
    def evaluations(self) -> int:
        """Forward passes of one item that have been spent, in whole ones: a pass over half the layers is half a one."""
        return math.ceil(self._layers_run / self.num_layers)

    def nll(self, chosen: Collection[Unit]) -> Tensor:
        """float64 [N]: each item's mean answer NLL in nats a token, with the chosen units under full attention."""
        return self.measure(chosen, "nll")

    def kl(self, chosen: Collection[Unit]) -> Tensor:
        """float64 [N]: each item's mean KL(full attention || choice) over the answer's positions, in nats."""
        return self.measure(chosen, "kl")

    def exact(self, chosen: Collection[Unit]) -> Tensor:
        """float64 [N]: 1 where every answer token is the likeliest given the right ones before it, else 0."""
        return self.measure(chosen, "exact")

    def measure(self, chosen: Collection[Unit], metric: str) -> Tensor:
        """float64 [N], on the CPU: one of ``METRICS`` of every item; the others that come with it go into the book.

        Raises:
            UserError: the model lacks a chosen unit.
        """
        check_choice("metric", metric, METRICS)
        choice = self._checked(chosen)
        found = self.book.find(self.subject, metric, choice)
        if found is None:
            if metric == "kl":
                self._need_full()
            if self._kept.kept_layers and self._reference not in (None, self._kept.reference):
                assert self._reference is not None
                self._run(self._reference, keep=True)
            found = self.book.find(self.subject, metric, choice)  # of the reference itself, from now on
        if found is None:
            self._run(choice)
            found = self.book.find(self.subject, metric, choice)
        assert found is not None
        return found

    def start_from(self, reference: Collection[Unit]) -> None:
        """Let coming measurements share with this choice the layers below the first that differs.

        The next measurement that runs keeps the reference's hidden states; what is on record runs nothing.
        """
        self._reference = self._checked(reference)

    def policy_of(self, chosen: Collection[Unit]) -> AttentionPolicy:
        """The policy that a choice is."""
        return policy_of(self.base, self._checked(chosen), num_layers=self.num_layers, num_heads=self.num_heads)

    def tell(self, what: str, done: int, total: int) -> None:
        """Tell how far a scorer is."""
        if self._progress is not None:
            self._progress(what, done, total)

    def remembered(self, metric: str, run: Callable[[], Tensor]) -> Tensor:
        """Values of the items under this base that belong to no choice: from the book, or else what ``run`` gives.

        Args:
            metric: names them, and all that they depend on.
            run: makes them, the items first.
        """
        found = self.book.find(self.subject, metric)
        if found is None:
            values = run()
            self._check_finite(metric, values)
            self.book.add(self.subject, metric, frozenset(), values)
            found = self.book.find(self.subject, metric)
        assert found is not None
        return found

    @contextlib.contextmanager
    def under(self, chosen: Collection[Unit]) -> Iterator[AttentionPolicy]:
        """Inside the block the model is under a choice, in eval mode; the value is its policy."""
        policy = self.policy_of(chosen)
        training = self.model.training
        self.model.eval()
        try:
            with apply_policy(self.model, policy, kernel=self.kernel):
                yield policy
        finally:
            self.model.train(training)

    def logits(self, batch: ItemBatch, *, layers: int | None = None) -> Tensor:
        """float32 [B, A, V] that predict the answers, by one forward pass under the policy that is on.

        Args:
            batch: one of :attr:`batches`.
            layers: how many the pass computes, for :attr:`evaluations`; None for all.
        """
        options: dict[str, Any] = {}
        width = batch.answer_ids.shape[1]
        if accepts(self.model, "logits_to_keep"):
            options["logits_to_keep"] = width
        if accepts(self.model, "position_ids"):
            options["position_ids"] = batch.position_ids
        out = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            prompt_lengths=batch.prompt_lengths,
            use_cache=False,
            **options,
        )
        self.spend(len(batch) * (self.num_layers if layers is None else layers))
        logits: Tensor = out.logits[:, -width:].float()
        return logits

    def spend(self, layers: int) -> None:
        """Count layers that ran, once for each item."""
        self._layers_run += layers

    def _run(self, choice: Choice, *, keep: bool = False) -> None:
        """Measure a choice, from where it differs from the reference on, and book it; ``keep``: as the reference."""
        first = self._kept.begin(choice)
        values = {metric: torch.zeros(len(self.items), dtype=torch.float64) for metric in METRICS}
        if keep:
            self._kept.reference = None  # until all is kept: an interruption must not leave a mixture
        with torch.no_grad(), self.under(choice):
            for index, batch in enumerate(self.batches):
                keeping = self._kept.keeping(index, first) if keep else contextlib.nullcontext()
                with self._kept.sharing(index, first), keeping:
                    logits_BAV = self.logits(batch, layers=self.num_layers - first)
                if keep and not self._proven and self._kept.kept_layers:
                    self._prove_sharing(batch, index, logits_BAV)
                self._score(batch, logits_BAV, values, is_full=choice == self.all_layers)
        if keep and self._kept.kept_layers:
            self._kept.reference = choice
        for metric in METRICS:
            if metric != "kl" or self._has_full:
                self._check_finite(metric, values[metric])
                self.book.add(self.subject, metric, choice, values[metric])

    def _score(self, batch: ItemBatch, logits_BAV: Tensor, values: dict[str, Tensor], *, is_full: bool) -> None:
        """Fill in the values of a batch's items."""
        log_probs_BAV = logits_BAV.log_softmax(-1)
        nll_BA = answer_nll(logits_BAV, batch)
        right_BA = logits_BAV.argmax(-1) == batch.answer_ids
        for row, place in enumerate(batch.places):
            real = batch.answer_mask[row]
            values["nll"][place] = nll_BA[row, real].double().mean()
            values["exact"][place] = right_BA[row, real].all()
            if is_full:
                self._full[place] = log_probs_BAV[row, real].cpu()
            if place in self._full:
                wanted_AV = self._full[place].to(log_probs_BAV.device)
                kl_AV = wanted_AV.exp() * (wanted_AV - log_probs_BAV[row, real])
                values["kl"][place] = kl_AV.sum(-1, dtype=torch.float64).mean()

    @property
    def _has_full(self) -> bool:
        return len(self._full) == len(self.items)

    def _need_full(self) -> None:
        if not self._has_full:
            self._run(self.all_layers, keep=self._reference == self.all_layers)

    def _prove_sharing(self, batch: ItemBatch, index: int, logits_BAV: Tensor) -> None:
        """Some models hand things past their layers (keys of an earlier layer, say): with these, nothing is shared.

        Every piece of the model between two layers that are kept runs alone, so that none leans on what is below it.
        """
        kept, reason = self._kept.kept_layers, "they depend on more than the one before"
        try:
            apart = True
            for layer, until in itertools.pairwise(kept):
                apart = apart and self._kept.gives_again(index, layer, until, lambda: self.logits(batch))
                self.spend(len(batch) * (until - layer))
            with self._kept.sharing(index, kept[-1] + 1):
                again_BAV = self.logits(batch, layers=self.num_layers - kept[-1] - 1)
            if apart and is_close(again_BAV, logits_BAV):
                self._proven = True
                return
        except Exception as error:  # whatever a model's own code raises where it misses what a layer below leaves
            reason = repr(error)
        log.warning(
            "%s: its layers cannot run apart (%s); each pass runs all of them", type(self.model).__name__, reason
        )
        self._kept.forget()

    def _check_finite(self, metric: str, values: Tensor) -> None:
        """Refuse what no ranking can go by, as of numbers too large for the model's dtype."""
        bad = [place for place, row in enumerate(values) if not bool(row.isfinite().all())]
        if bad:
            raise UserError(
                f"item {self.items[bad[0]].id}: its {metric} is not finite under {self.base!r}, in "
                f"{str(self.model.dtype).removeprefix('torch.')}. Check the weights, or set model.dtype to float32."
            )

    def _checked(self, chosen: Collection[Unit]) -> Choice:
        choice = frozenset(chosen)
        for unit in choice:
            head = unit[1] if isinstance(unit, tuple) else 0
            if not (0 <= layer_of(unit) < self.num_layers and 0 <= head < self.num_heads):
                raise UserError(
                    f"chosen: expected layers from 0 to {self.num_layers - 1}, or pairs of these with heads from 0 to "
                    f"{self.num_heads - 1}, got {unit!r}. Choose units that the model has."
                )
        return choice

    def _check_fits(self) -> None:
        context, longest = context_of(self.model), max(self.items, key=len)
        if context is not None and len(longest) > context:
            raise UserError(
                f"item {longest.id}: it has {len(longest)} tokens, and the model's context is {context}. "
                f"Ask for a shorter calibration.length."
            )


def answer_nll(logits_BAV: Tensor, batch: ItemBatch) -> Tensor:
    """float32 [B, A]: negative log-likelihood of each answer token, in nats; 0 at padding. Differentiable."""
    nll_BA = -logits_BAV.log_softmax(-1).gather(-1, batch.answer_ids.unsqueeze(-1)).squeeze(-1)
    return nll_BA.masked_fill(~batch.answer_mask, 0.0)


def _subject(model: Any, items: Sequence[Item], base: AttentionPolicy, kernel: str) -> str:
    """Sixteen hexadecimal digits. Of each weight a few values are read: fine-tuning changes them."""
    digest = hashlib.sha256()
    config = text_config(model.config).to_dict()
    named = {key: value for key, value in config.items() if not key.startswith("_") and key != ATTRIBUTE}
    digest.update(json.dumps(named, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(json.dumps(weight.detach().flatten()[:8].double().tolist()).encode())
    digest.update(json.dumps([(item.id, item.ids, item.answer_ids) for item in items]).encode())
    digest.update(f"{base!r} {kernel}".encode())
    return digest.hexdigest()[:16]
