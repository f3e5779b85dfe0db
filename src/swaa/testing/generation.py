"""Generation on a tiny model: with the evicting cache, without a cache, and under a dense mask without swaa."""

from __future__ import annotations

import torch
from torch import Tensor

from swaa.policies import bind
from swaa.testing.findings import Failure, Note, passed, skipped
from swaa.testing.meaning import Sizes
from swaa.testing.scenes import expected_mask, whole
from swaa.testing.subject import NOT_REGISTERED, Case, Subject

_PROMPT, _NEW = 14, 10
_MOST_LAYERS = 12


def generates(subject: Subject) -> Failure | Note:
    """generate() gives the same tokens with keys evicted, with no cache, and under the dense mask."""
    if not subject.registered:
        return skipped(NOT_REGISTERED)
    from swaa.hf.apply import apply_policy
    from swaa.hf.tiny import WORDS, generate, tiny_model

    prompt = torch.randint(1, WORDS, (1, _PROMPT), generator=torch.Generator().manual_seed(1))
    cases = [*subject.alone()[:3], *subject.scoped("phase", ["prefill"], Sizes())[:1]]
    cases = [case for case in cases if case.sizes.layers <= _MOST_LAYERS]
    if not cases:
        return skipped(f"it names layers beyond {_MOST_LAYERS}, and the model is tiny")
    for case in cases:
        model = tiny_model(max(2, case.sizes.layers), case.sizes.heads)
        results: dict[str, Tensor] = {}
        for name, evict in {"the evicting cache": True, "a cache that keeps all": False}.items():
            with apply_policy(model, case.policy, evict=evict):
                results[name] = generate(model, prompt, _NEW)
        results["no cache"] = _recomputed(model, prompt, case)
        if _alike(case) and not subject.by_content:
            results["the dense mask, without swaa"] = _under_dense_mask(model, prompt, case, subject)
        (first, tokens), *others = results.items()
        for name, other in others:
            if not torch.equal(tokens, other):
                at = int((tokens != other)[0].nonzero()[0])
                return Failure(
                    "generation differs",
                    f"{case.written}: token {at} (the prompt has {_PROMPT}) is another with {first} than with {name}",
                    "See the other failures first; where there are none, report this one.",
                    tokens=at + 1,
                )
    return passed(f"{len(cases)} x {_NEW} tokens")


def _alike(case: Case) -> bool:
    """Do all layers of the model see the same, so that one mask serves it?"""
    return len(bind(case.policy, max(2, case.sizes.layers), case.sizes.heads).distinct) == 1


def _recomputed(model: object, prompt: Tensor, case: Case) -> Tensor:
    """Greedy tokens under the policy, each from a forward pass over everything."""
    from swaa.hf.apply import apply_policy

    assert isinstance(model, torch.nn.Module)
    tokens = prompt
    with apply_policy(model, case.policy, kernel="dense"), torch.no_grad():
        for _ in range(_NEW):
            output = model(tokens, use_cache=False, prompt_lengths=torch.tensor([_PROMPT]))
            tokens = torch.cat([tokens, output.logits[:, -1:].argmax(-1)], 1)
    return tokens


def _under_dense_mask(model: object, prompt: Tensor, case: Case, subject: Subject) -> Tensor:
    """Greedy tokens of the model's own attention, given the pairs that are visible."""
    from swaa.hf.tiny import logits_under_mask

    tokens, length = prompt, _PROMPT + _NEW
    mask = expected_mask(case.meaning, whole(length, _PROMPT), case.sizes, 0, subject.reader)[0]
    for size in range(_PROMPT, length):
        logits = logits_under_mask(model, tokens, mask[:, :size, :size])  # type: ignore[arg-type]  # a transformers model
        tokens = torch.cat([tokens, logits[-1].argmax().reshape(1, 1)], 1)
    return tokens
