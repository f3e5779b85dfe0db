"""A mark in the weights of a model that has a policy, so that no loader can leave the policy off without a word.

A config attribute that a loader does not know is ignored in silence. A tensor that it does not know is not: every
version of transformers names it when it loads the checkpoint, with swaa installed or without, and stricter
loaders refuse it. So a model carries, for as long as a policy is on it, a buffer of one byte whose name is the warning.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from swaa.hf.sinks import PARAMETER

MARK = "policy_is_off_unless_loaded_with_swaa"
"""The buffer's name."""

_LOADER = "transformers.modeling_utils"


def mark(model: PreTrainedModel) -> bool:
    """Put the mark on a model. Returns whether it was not there before."""
    if MARK in model._buffers:
        return False
    model.register_buffer(MARK, torch.ones(1, dtype=torch.uint8, device=model.device))
    _hooks[model] = model.register_load_state_dict_pre_hook(_expect_no_mark)
    return True


def unmark(model: PreTrainedModel) -> None:
    """Take the mark off, if it is there."""
    model._buffers.pop(MARK, None)
    if model in _hooks:
        _hooks.pop(model).remove()


def _expect_no_mark(model: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights saved without a policy load, too."""
    state.setdefault(prefix + MARK, model._buffers[MARK])


_hooks: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()


@contextmanager
def mark_expected() -> Iterator[None]:
    """Inside the block, transformers does not report a checkpoint in which only swaa's own tensors are unexpected.

    These are the mark, and learned sink logits.
    """
    logger = logging.getLogger(_LOADER)
    quiet = _OnlyTheMark()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


class _OnlyTheMark(logging.Filter):
    """Holds back the loading report of which every entry is swaa's, the mark one of them."""

    def filter(self, record: Any) -> bool:
        report = record.getMessage()
        entries = [line for line in report.splitlines() if " | " in line and "Status" not in line]
        ours = [MARK in entry or PARAMETER in entry for entry in entries]
        return not (any(MARK in entry for entry in entries) and all(ours))
