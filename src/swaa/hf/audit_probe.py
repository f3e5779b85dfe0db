"""One probing run: the model generates for a batch of equal rows, of which each but two has one key disturbed.

Row 0 is clean, row 1 as well: how far it is from row 0 is the error of the arithmetic. In row 2 + n the attention
input of key ``keys[n]`` is disturbed, in every layer. What the heads give, seen at the input of the output projection,
differs from row 0's just where that key has influence. The attention module's own output is then overwritten with row
0's, and its input before that: every layer is probed alone, and a row's cached keys differ from row 0's at that key.

The rows go through the model's own ``generate()``: its masks, its attention, its cache, its phases. Attention modules
alone run in another precision (float64, as a rule); what goes in and comes out is converted.

Shape suffixes: B rows (2 + keys), N keys, T tokens of a pass, S all slots, H query heads, E hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swaa.errors import UserError
from swaa.hf.audit_places import AttentionPlace
from swaa.hf.spec import text_config

CLEAN_ROWS = 2
_UNSTEADY = 1e-4
"""Equal rows that differ by more, relative to the head's largest output, make an audit meaningless."""


@dataclass(frozen=True)
class Disturbance:
    """How keys are disturbed, and on which text.

    Attributes:
        strength: of the noise, in units of the hidden state's own root mean square; a negative one turns it round.
        seed: of the tokens and of the noise.
    """

    strength: float
    seed: int


@dataclass(frozen=True)
class Precision:
    """What attention is computed in during an audit."""

    dtype: torch.dtype = torch.float64

    @property
    def floor(self) -> float:
        """The difference from which on a key counts as seen, relative to the head's largest output so far."""
        return 256 * torch.finfo(self.dtype).eps

    def convert(self, value: Any) -> Any:
        """Floating-point tensors, in tuples, lists and dicts too; all else as it is."""
        if isinstance(value, Tensor):
            return value.to(self.dtype) if value.is_floating_point() else value
        if type(value) in (tuple, list):
            return type(value)(self.convert(one) for one in value)
        return {name: self.convert(one) for name, one in value.items()} if type(value) is dict else value

    @contextmanager
    def inside(self, base: nn.Module, places: Sequence[AttentionPlace]) -> Iterator[None]:
        """The model in eval mode, its attention modules in this precision; all restored to the bit afterwards.

        In place, because a copy would leave behind hooks that its user has set up. The tensors are kept, not copied.
        """
        tensors = [one for place in places for one in (*place.module.parameters(), *place.module.buffers())]
        kept = [(one, one.data) for one in {id(one): one for one in tensors}.values() if one.is_floating_point()]
        modes = [(module, module.training) for module in base.modules()]
        try:
            for one, data in kept:
                one.data = data.to(self.dtype)
            base.eval()
            yield
        finally:
            for one, data in kept:
                one.data = data
            for module, training in modes:
                module.training = training


@dataclass(frozen=True, eq=False)
class Influence:
    """What one run, or several over different keys, has shown.

    Attributes:
        seen_LSHN: bool: did disturbing the key change what the head gives at the slot?
        error: the largest difference between equal rows, relative to the head's largest output.
    """

    seen_LSHN: Tensor
    error: float


class _Listener:
    """The hooks on one attention module, for one run."""

    def __init__(
        self,
        place: AttentionPlace,
        keys: Sequence[int],
        length: int,
        num_heads: int,
        noise: Disturbance,
        precision: Precision,
    ) -> None:
        self._place, self._keys, self._length, self._num_heads = place, keys, length, num_heads
        self._precision = precision
        self._strength = noise.strength
        self._seed = noise.seed
        self._begin = self._end = 0
        self._last_input: Any = None
        self._scale_H: Tensor | None = None
        self.seen_SHN = torch.zeros(length, num_heads, len(keys), dtype=torch.bool)
        self.error = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooked in, behind all hooks that are there."""
        module = self._place.module
        with ExitStack() as stack:
            for hook in (
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after),
                *(child.register_forward_pre_hook(self._remember) for child in self._place.projections),
            ):
                stack.callback(hook.remove)
            yield

    @property
    def complete(self) -> bool:
        """Has every slot passed once?"""
        return self._end == self._length

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        named = "hidden_states" in kwargs
        hidden_BTE = kwargs["hidden_states"] if named else args[0] if args else None
        rows = CLEAN_ROWS + len(self._keys)
        if not isinstance(hidden_BTE, Tensor) or hidden_BTE.dim() != 3 or len(hidden_BTE) != rows:
            raise self._unfit("is not called with hidden states of shape [rows, tokens, size]")
        self._begin, self._end = self._end, self._end + hidden_BTE.shape[1]
        if self._end > self._length:
            raise self._unfit("ran more than once for the same tokens")
        self._dtype = hidden_BTE.dtype
        args, kwargs = self._precision.convert(args), self._precision.convert(kwargs)
        changed_BTE = self._precision.convert(hidden_BTE[:1]).repeat(rows, 1, 1)
        for row, key in enumerate(self._keys, start=CLEAN_ROWS):
            if self._begin <= key < self._end:
                changed_BTE[row, key - self._begin] += self._noise(key, hidden_BTE[0, key - self._begin])
        self._last_input = None
        return (args, kwargs | {"hidden_states": changed_BTE}) if named else ((changed_BTE, *args[1:]), kwargs)

    def _noise(self, key: int, hidden_E: Tensor) -> Tensor:
        """What a key's hidden state is changed by: the same in all runs of a seed, whatever other keys are probed."""
        size = float(hidden_E.double().square().mean().sqrt()) or 1.0
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self._place.layer) * 1_000_003 + key)
        noise_E = torch.randn(len(hidden_E), generator=generator, dtype=torch.float64)
        return (self._strength * size * noise_E).to(hidden_E)

    def _remember(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._last_input = args[0] if args else None

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        self._compare(self._last_input)
        self._last_input = None
        same = first[:1].to(self._dtype).repeat(len(first), *[1] * (first.dim() - 1))
        return (same, *output[1:]) if isinstance(output, tuple) else same

    def _compare(self, heads: Any) -> None:
        """What the heads give, at the input of the projection that ran last: each row against row 0."""
        rows, tokens = CLEAN_ROWS + len(self._keys), self._end - self._begin
        if not isinstance(heads, Tensor) or heads.numel() % (rows * tokens * self._num_heads):
            raise self._unfit(f"does not end in a projection of {self._num_heads} heads")
        heads_BTHD = heads.detach().reshape(rows, tokens, self._num_heads, -1)
        if not bool(heads_BTHD[0].isfinite().all()):
            raise self._unfit("gives values that are not finite")
        largest_H = heads_BTHD[0].abs().amax((0, 2))
        self._scale_H = largest_H if self._scale_H is None else torch.maximum(self._scale_H, largest_H)
        distance_BTH = (heads_BTHD - heads_BTHD[:1]).abs().amax(-1) / self._scale_H.clamp(min=1e-300)
        error = float(distance_BTH[1].max())
        self.error = max(self.error, error)
        if error > _UNSTEADY:
            raise self._unfit(f"gives equal rows different outputs (by {error:.1e}): it is random, or mixes rows")
        seen_NTH = ~(
            distance_BTH[CLEAN_ROWS:] <= max(self._precision.floor, 16 * error)
        )  # what is no number any more was seen
        self.seen_SHN[self._begin : self._end] = seen_NTH.movedim(0, -1).cpu()

    def _unfit(self, what: str) -> UserError:
        owner = type(self._place.module).__name__
        return UserError(f"{owner} ({self._place.name}): cannot be audited, because it {what}.")


def influence(
    base: PreTrainedModel,
    places: Sequence[AttentionPlace],
    keys: Sequence[int],
    length: int,
    prompt_length: int,
    noise: Disturbance,
    precision: Precision,
) -> Influence:
    """Which of the keys influence which query of which layer and head, as the model generates.

    Args:
        places: the attention modules to probe.
        keys: slots, each less than ``length``.
        length: slots in all; those from ``prompt_length`` on are decoded one by one.
        precision: of the attention modules; see :func:`in_precision`.

    Raises:
        UserError: a module cannot be probed; why is said.
    """
    num_heads = text_config(base.config).num_attention_heads
    batch = _rows_at_once(base, prompt_length, length)
    runs = []
    for start in range(0, len(keys), batch):
        some = keys[start : start + batch]
        listeners = [_Listener(place, some, length, num_heads, noise, precision) for place in places]
        with ExitStack() as stack:
            for listener in listeners:
                stack.enter_context(listener.listening())
            _generate(base, CLEAN_ROWS + len(some), prompt_length, length, noise.seed)
        for listener, place in zip(listeners, places, strict=True):
            if not listener.complete:
                raise UserError(
                    f"{type(place.module).__name__} ({place.name}): did not see all {length} tokens that were "
                    f"generated, so it cannot be audited."
                )
        runs.append(Influence(torch.stack([one.seen_SHN for one in listeners]), max(one.error for one in listeners)))
    return Influence(torch.cat([run.seen_LSHN for run in runs], -1), max(run.error for run in runs))


def _generate(base: PreTrainedModel, rows: int, prompt_length: int, length: int, seed: int) -> None:
    """Greedy generation from a random prompt that all rows share, until ``length`` tokens have passed the model."""
    prompt_1P = _tokens(base, prompt_length, seed)
    settings = copy.deepcopy(base.generation_config)
    new = length - prompt_length + 1  # the last token that is generated never passes the model
    settings.update(
        do_sample=False, num_beams=1, max_new_tokens=new, min_new_tokens=new, use_cache=True, max_length=None
    )
    settings.update(num_return_sequences=1, return_dict_in_generate=False, temperature=None, top_p=None, top_k=None)
    if settings.pad_token_id is None:
        settings.pad_token_id = 0  # no row ends early: it is asked for, and not used
    ids_BP = prompt_1P.expand(rows, -1).contiguous().to(base.device)
    generate: Any = base.generate
    try:
        with torch.no_grad():
            generate(ids_BP, attention_mask=torch.ones_like(ids_BP), generation_config=settings)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # what a model or a kernel does not know
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{type(base).__name__}: cannot be audited, because generate() fails on {rows} equal rows of "
            f"{prompt_length} tokens, with attention in another precision: {reason}"
        ) from error


def _tokens(base: PreTrainedModel, number: int, seed: int) -> Tensor:
    """Random tokens [1, number], none of those that a config gives a meaning to."""
    config = text_config(base.config)
    configs = (config.to_dict(), base.config.to_dict())
    special = {
        value
        for fields in configs
        for name, value in fields.items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    plain = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    chosen = torch.randint(len(plain), (1, number), generator=torch.Generator().manual_seed(seed))
    return plain[chosen]


_BUDGET = 2**30
"""Bytes that the rows of a batch may take, about."""


def _rows_at_once(base: PreTrainedModel, prompt_length: int, length: int) -> int:
    """Keys probed in one batch: as many as memory allows, by a rough count of what a row takes."""
    config = text_config(base.config)
    scores = 3 * config.num_attention_heads * prompt_length**2
    states = prompt_length * (12 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 0))
    cached = 2 * config.num_hidden_layers * length * config.hidden_size
    row: int = 8 * (scores + states + cached + config.vocab_size)
    return max(1, _BUDGET // row - CLEAN_ROWS)
