"""Running experiments. The only importer of lightning."""

from __future__ import annotations

from swaa.engine.interrupt import Interrupted
from swaa.engine.run import run_experiment

__all__ = ["Interrupted", "run_experiment"]
