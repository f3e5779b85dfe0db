"""Running a batch: one prefill, then the two ways of scoring that share it.

The loop is our own rather than ``generate()``: it lets teacher-forced scoring start from the very prefill that
generation uses (half the work), times prefill and decode apart, and gives every sample a random stream of its own.

Shapes: B samples, S prompt tokens (left-padded), A answer tokens (right-padded), V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.compiler import prefill_chunk
from swaa.config.common import ChunkSize
from swaa.engine.batch import Batch
from swaa.engine.reply import Ending, Reply
from swaa.hf import model_shape
from swaa.policies import AttentionPolicy
from swaa.recipe import Decoding


@dataclass(frozen=True)
class Prefill:
    """A batch of prompts, read.

    Attributes:
        logits: ``[B, V]`` of the last prompt token, which predicts the first answer token.
        cache: keys and values of the prompts, the model's own object.
        seconds: wall time of the forward pass over the whole batch.
    """

    logits: Tensor
    cache: Any
    seconds: float


@dataclass(frozen=True)
class Generation:
    """What a batch generated.

    Attributes:
        texts: B texts as they came, up to the end-of-sequence token.
        num_tokens: B counts of tokens, the end-of-sequence token included.
        step_seconds: mean wall time of a decode step of the batch; None if there was none.
        endings: B times what ended the answer.
        closed: B truths: the reasoning had spent its budget, and was closed for the model.
    """

    texts: list[str]
    num_tokens: list[int]
    step_seconds: float | None
    endings: list[Ending]
    closed: list[bool]


@dataclass(frozen=True)
class Forced:
    """What the model makes of the reference answers.

    Attributes:
        exact: B truths: every answer token was the likeliest, given the right ones before it.
        nll: B means of the negative log-likelihood, in nats per answer token.
    """

    exact: list[bool]
    nll: list[float]


def prefill(model: Any, batch: Batch, chunk_size: ChunkSize = None) -> Prefill:
    """Read the prompts of a batch; all that follows continues from here.

    Args:
        model: with the recipe's policy on it.
        batch: the prompts.
        chunk_size: slots that are read at a time, which bounds the memory; ``auto`` goes by the policy; None reads all
            at once.
    """
    start = now(batch.prompt_ids.device)
    ids, mask = batch.prompt_ids, batch.prompt_mask
    chunk_size = chunk_for(chunk_size, batch.recipe.policy, model, ids.shape[1])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    options = {"prompt_lengths": batch.prompt_lengths, **_last_only(model)}
    out, step = None, chunk_size or ids.shape[1]
    for first in range(0, ids.shape[1], step):
        last, cache = first + step, None if out is None else out.past_key_values
        out = _forward(model, ids[:, first:last], mask[:, :last], positions[:, first:last], cache, **options)
    assert out is not None
    return Prefill(out.logits[:, -1].float(), out.past_key_values, now(ids.device) - start)


def chunk_for(asked: ChunkSize, policy: AttentionPolicy, model: Any, length: int) -> int | None:
    """Tokens of a prompt of ``length`` to read at a time, which ``auto`` leaves to the policy and the device."""
    return prefill_chunk(policy, model_shape(model), length, model.device.type) if asked == "auto" else asked


def teacher_forced(model: Any, batch: Batch, read: Prefill) -> Forced:
    """Score the reference answers as decoded tokens; ``read`` can still be continued afterwards.

    The first answer token is predicted by the last prompt token, so under the prefill policy; the others by the answer
    token before them, under the decode policy.
    """
    logits = read.logits[:, None]  # [B, 1, V]
    if batch.answer_ids.shape[1] > 1:
        given, mask = batch.answer_ids[:, :-1], batch.answer_mask[:, :-1]
        positions = batch.prompt_lengths[:, None] + torch.arange(given.shape[1], device=given.device)
        mask = torch.cat([batch.prompt_mask, mask], dim=1)
        out = _forward(model, given, mask, positions, copy.deepcopy(read.cache))
        logits = torch.cat([logits, out.logits.float()], dim=1)  # [B, A, V]
    answers, real = batch.answer_ids, batch.answer_mask.bool()
    right = (logits.argmax(-1) == answers) | ~real
    nll = -logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]
    mean_nll = (nll * real).sum(1) / real.sum(1)
    return Forced(right.all(1).tolist(), mean_nll.tolist())


def generate(model: Any, tokenizer: Any, batch: Batch, read: Prefill, decoding: Decoding) -> Generation:
    """Continue the prompts token by token; consumes the cache of ``read``.

    A sample ends at an end-of-sequence token, at one of ``decoding.stop`` or after ``decoding.max_new_tokens``; the
    batch ends with its last sample.
    """
    device = batch.prompt_ids.device
    ends = end_of_sequence_ids(model, tokenizer)
    choose = _Chooser(decoding, batch)
    replies = [Reply(tokenizer, sample, decoding, ends) for sample in batch.samples]
    mask, positions, logits, steps = batch.prompt_mask, batch.prompt_lengths, read.logits, 0
    start = now(device)
    while True:
        chosen = choose(logits)  # [B]
        taken = [
            reply.take(token) if reply.running else token for reply, token in zip(replies, chosen.tolist(), strict=True)
        ]
        if not any(reply.running for reply in replies) or steps + 1 == decoding.max_new_tokens:
            break
        mask = torch.cat([mask, mask.new_ones(len(replies), 1)], dim=1)
        given = torch.tensor(taken, device=device)[:, None]
        out = _forward(model, given, mask, positions[:, None], read.cache)
        logits, positions, steps = out.logits[:, -1].float(), positions + 1, steps + 1
    seconds = now(device) - start
    return Generation(
        texts=[reply.text for reply in replies],
        num_tokens=[len(reply.tokens) for reply in replies],
        step_seconds=seconds / steps if steps else None,
        endings=[reply.ending for reply in replies],
        closed=[reply.closed for reply in replies],
    )


def end_of_sequence_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, the model's and the tokenizer's."""
    named = [tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None)]
    flat = [token for item in named for token in (item if isinstance(item, Sequence) else [item])]
    return frozenset(token for token in flat if token is not None)


class _Chooser:
    """Chooses the next token of every row: the likeliest, or a draw from the row's own random stream.

    A draw adds Gumbel noise to the log-probabilities and takes the largest, which is an exact draw. The stream's seed
    is made from the recipe's and the sample's identity, so that neither the rest of the batch nor an interruption
    changes what is drawn.
    """

    def __init__(self, decoding: Decoding, batch: Batch) -> None:
        self._decoding = decoding
        self._streams = [] if decoding.greedy else [_stream(decoding.seed, sample) for sample in batch.samples]

    def __call__(self, logits: Tensor) -> Tensor:
        """``[B, V]`` logits -> ``[B]`` tokens."""
        if self._decoding.greedy:
            return logits.argmax(-1)
        logits = nucleus(logits / self._decoding.temperature, self._decoding.top_p)
        uniform = torch.stack([torch.rand(logits.shape[1], generator=stream) for stream in self._streams])
        gumbel = -(-uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log()).log()
        return (logits + gumbel.to(logits.device)).argmax(-1)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """``[B, V]`` logits with -inf outside the fewest likeliest tokens whose probabilities reach ``top_p``."""
    ordered, index = logits.softmax(-1).sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # probability of all likelier tokens
    beyond = before >= top_p
    outside = torch.empty_like(beyond).scatter(-1, index, beyond)  # back in the vocabulary's order
    return logits.masked_fill(outside, float("-inf"))


def _stream(seed: int, sample: Any) -> torch.Generator:
    identity = f"{seed}/{sample.task.label}/{sample.length}/{sample.example.id}"
    digest = hashlib.sha256(identity.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _forward(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, **options: Any) -> Any:
    """One pass over new tokens ``ids [B, Q]`` at logical ``positions [B, Q]``, after what ``cache`` holds."""
    if accepts(model, "position_ids"):
        options["position_ids"] = positions
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options)


def _last_only(model: Any) -> dict[str, int]:
    """The option that spares the vocabulary's logits of all prompt tokens but the last, where there is one."""
    return {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}


def accepts(model: Any, option: str) -> bool:
    """Does the model's forward pass take this argument?"""
    return option in inspect.signature(model.forward).parameters


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
