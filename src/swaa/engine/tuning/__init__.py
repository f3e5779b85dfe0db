"""Fine-tuning under any policy: from conversations to a merged model with figures."""

from __future__ import annotations

from swaa.engine.tuning.run import run_finetuning

__all__ = ["run_finetuning"]
