"""lm-evaluation-harness: its tasks on a model under an attention policy. The only importer of lm_eval.

Names are imported on first use: lm_eval is an optional extra, and brings transformers along. Importing
:mod:`swaa.harness.model` registers the model ``swaa`` with lm-eval, for whoever runs lm-eval by its own means.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from swaa.errors import UserError

if TYPE_CHECKING:
    from swaa.harness.model import SwaaLM
    from swaa.harness.run import check_output, evaluate, table, write_results

__all__ = ["SwaaLM", "check_output", "evaluate", "table", "write_results"]

_MODULES = {"SwaaLM": "model"} | dict.fromkeys(("check_output", "evaluate", "table", "write_results"), "run")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        message = "lm-evaluation-harness is not installed. Install it: pip install 'swaa[lm-eval]'"
        raise UserError(message) from error
    globals()[name] = value
    return value
