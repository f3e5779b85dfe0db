"""The model ``swaa`` of lm-evaluation-harness: its model ``hf`` under an attention policy, with the phases right.

Stock ``hf`` scores a continuation in the same forward pass as its context, where every token is prompt, so that a
policy for decoding would never act. It also cuts what is too long on the left, with a warning at most. Here a
continuation decodes, and what is too long is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from tqdm import tqdm

from swaa.errors import UserError, invalid
from swaa.harness.policy import PolicyLike, chosen_policy
from swaa.harness.scoring import Request, Row, padded, prompt_lengths, rows
from swaa.hf.ahead import refuse_scored_prompt
from swaa.hf.apply import apply_policy
from swaa.hf.loading import model_source
from swaa.hf.mark import mark_expected
from swaa.hf.spec import policy_on, read_spec, saved_policy
from swaa.policies import FullAttention


@register_model("swaa")
class SwaaLM(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """lm-eval's model ``hf`` under an attention policy.

    Generation: the prompt runs under the prefill policy, what is generated under the decode policy. Log-likelihoods and
    multiple choice: the context is the prompt, and the continuation decodes (its first token is predicted by the last
    token of the context, so under the prefill policy, as in generation). Rolling log-likelihoods: a text is scored as a
    whole, and all of it is prompt.

    Attributes:
        handle: the policy on the model; ``handle.remove()`` takes it off a model that is to be used further.
        truncated: by task, requests that were cut on the left because of ``truncate``.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        policy: PolicyLike | None = None,
        policy_file: str | Path | None = None,
        kernel: str | None = None,
        truncate: bool = False,
        **hf: Any,
    ) -> None:
        """Load a model as ``hf`` does, and put the policy on it.

        Args:
            pretrained: a catalogue name of swaa's, a local folder, a hub id, or a transformers model.
            policy: a policy, an expression or a dict. None: the one saved with the checkpoint, else full attention.
            policy_file: a text file that holds the expression: lm-eval cuts its ``model_args`` at every comma.
            kernel: see :func:`swaa.apply_policy`; None is the one saved with the checkpoint, else "auto".
            truncate: cut a request that is longer than ``max_length`` on the left, and count it, instead of refusing.
            hf: the arguments of lm-eval's ``hf``: ``tokenizer``, ``dtype``, ``device``, ``batch_size``, ``max_length``,
                ``peft``, …

        Raises:
            UserError: the model cannot be loaded, or cannot run under the policy.
        """
        if hf.pop("truncation", False):
            mend = "Use truncate=True: it cuts on the left, too, and counts what it cut."
            raise invalid("truncation", accepted="False", got=True, mend=mend)
        asked = chosen_policy(policy, policy_file)
        if isinstance(pretrained, str | Path):
            pretrained = model_source(pretrained)
            if hf.get("device") in (None, "auto"):  # lm-eval's own default is CUDA, whether there is any or not
                hf["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with mark_expected():
                super().__init__(pretrained, **hf)
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"lm-eval cannot load the model {pretrained!s:.200}: {reason}") from error
        if isinstance(pretrained, str) and torch.device(hf["device"]).type != self.device.type:
            mend = "Leave it out for what there is."
            raise invalid("device", accepted="a device of this machine", got=hf["device"], mend=mend)
        spec = read_spec(self.model.config) or {}
        options = {name: spec[name] for name in ("kernel", "evict") if name in spec}
        asked = asked or saved_policy(self.model.config) or FullAttention()
        self.handle = apply_policy(self.model, asked, **(options if kernel is None else options | {"kernel": kernel}))
        self.truncate = truncate
        self.truncated: Counter[str] = Counter()
        self._instances: Sequence[Instance] = ()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, is it what greedy decoding would say) of each continuation, given its context."""
        with self._answering(requests):
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each prompt, up to a stop string or the limit of new tokens."""
        with self._answering(requests):
            for index, request in enumerate(requests):
                text, options = request.args
                new = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
                prompt = self.tok_batch_encode([text])[0].shape[1]
                self._fits(index, prompt + new, self.max_length, f"{prompt} prompt tokens and {new} new ones", new)
        answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results."""
        on = policy_on(self.model.config)
        return {**super().get_model_info(), "policy": repr(on.policy), "kernel": on.kernel}

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """The answers to tokenised requests, in their order; ``override_bs`` goes before the batch size."""
        checked = [self._checked(index, Request(*request)) for index, request in enumerate(requests)]
        on = policy_on(self.model.config)
        if any(request.is_rolling for request in checked):
            refuse_scored_prompt(on.policy, "a rolling log-likelihood")
        by_phase = on.by_phase
        waiting = rows(checked, by_phase=by_phase, share=self.logits_cache)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(checked)
        with tqdm(total=len(checked), disable=disable_tqdm or self.rank != 0, desc="Log-likelihoods") as progress:
            for batch in self._batches(waiting, override_bs):
                lengths = prompt_lengths(batch, self.device) if by_phase else None
                logits = self._model_call(padded(batch, self.device), prompt_lengths=lengths)
                for row, row_logits in zip(batch, logits, strict=True):
                    for index, answer in row.answers(row_logits, self.softmax_dtype):
                        answers[index] = answer
                        if not checked[index].is_rolling:
                            self.cache_hook.add_partial("loglikelihood", checked[index].strings, answer)
                        progress.update()
        return answers

    def _batches(self, waiting: list[Row], override_bs: int | None) -> Iterator[list[Row]]:
        """The rows in batches, of a size that lm-eval finds by trying where the batch size is "auto"."""
        self.batch_sizes: dict[int, int] = {}  # found for other lengths, they would not fit
        requests, start = [row.request for row in waiting], 0
        while start < len(waiting):
            size = override_bs or self.batch_size
            size = self._batch_scheduler(start, requests) if size == "auto" else size
            yield waiting[start : start + size]
            start += size

    def _model_call(
        self,
        inps: Tensor,
        attn_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        prompt_lengths: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[B, S, V]`` of tokens ``[B, S]``, of which the first ``prompt_lengths[b]`` are the prompt."""
        assert attn_mask is labels is None, "policies are for decoders"
        phases = {} if prompt_lengths is None else {"prompt_lengths": prompt_lengths}
        dtype = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            logits: Tensor = self.model(inps, use_cache=False, **phases).logits
        return logits

    @contextmanager
    def _answering(self, instances: Sequence[Instance]) -> Iterator[None]:
        """Inside the block, requests are counted and named by the task and document that they come from."""
        self._instances = instances
        try:
            yield
        finally:
            self._instances = ()

    def _checked(self, index: int, request: Request) -> Request:
        """A request that the model can read whole, or what is left of it."""
        context, continuation = len(request.context), len(request.continuation)
        if not context or not continuation:
            raise UserError(
                f"{self._name(index)}: expected tokens in the context and in the continuation, got {context} and "
                f"{continuation}. The tokenizer makes one token of the end of one and the start of the other, or "
                f"one of them is empty. Change the task's doc_to_text or doc_to_choice."
            )
        limit = self.max_length + 1  # the last token is predicted and never read
        parts = f"{context} tokens of context and {continuation} of continuation"
        self._fits(index, context + continuation, limit, parts, continuation)
        return request.last(limit)

    def _fits(self, index: int, tokens: int, limit: int, parts: str, needed: int) -> None:
        """Refuse a request of more than ``limit`` tokens, or count it as cut; ``needed`` ones cannot be cut off."""
        if tokens <= limit:
            return
        if not self.truncate or needed >= limit:
            mend = "Raise max_length if the model can take more, or leave this task out."
            if needed < limit:
                mend = f"{mend[:-1]}, or pass truncate=True (--truncate) to cut such requests on the left."
            raise UserError(
                f"{self._name(index)}: {parts} are {tokens}, and at most {limit} fit max_length={self.max_length}. "
                f"{mend}"
            )
        self.truncated[self._task(index)] += 1

    def _task(self, index: int) -> str:
        name = self._instances[index].task_name if self._instances else None
        return "requests without a task" if name is None else str(name)

    def _name(self, index: int) -> str:
        """A request as a user finds it again."""
        if not self._instances:
            return f"request {index}"
        return f"task {self._task(index)!r}, document {self._instances[index].doc_id}"
