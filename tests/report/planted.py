"""Folders of runs, written as the engine writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from swaa.report import Record

FULL, WINDOW, TUNED = "f" * 64, "a" * 64, "b" * 64
RECIPES: dict[str, dict[str, Any]] = {
    FULL: {"name": "FA", "policy": "FullAttention()", "window": None},
    WINDOW: {"name": "window 128", "policy": "SlidingWindow(128)", "window": 128},
    TUNED: {"name": "FA tuned", "policy": "FullAttention()", "fine_tuning": "lora", "window": None},
}


def record(recipe: str, example: int, score: float | None, **others: Any) -> Record:
    """A record of one of ``RECIPES``; without ``score``, one that could not be graded."""
    scores = {} if score is None else {"score": score, "all_correct": float(score == 1)}
    return Record(
        **{
            "recipe": RECIPES[recipe]["name"],
            "recipe_hash": recipe,
            "task": "needle",
            "length": 900,
            "example": f"e{example}",
            "seed": 0,
            "prompt_tokens": 900,
            "answer": f" {example}",
            "generated": " 1",
            "scores": {**scores, **others.pop("scores", {})},
            **others,
        }
    )


def info(**others: Any) -> dict[str, Any]:
    """``run.json`` of a finished run of full attention and a window."""
    recipes = others.pop("recipes", (FULL, WINDOW))
    return {
        "format": 1,
        "status": "finished",
        "model": {
            "name": "tiny",
            "dtype": "float32",
            "device": "cpu",
            "num_layers": 2,
            "num_heads": 4,
            "context": None,
        },
        "recipes": [
            {"hash": hash_, "prompting": "direct", "fine_tuning": None, "decoding": {}, **RECIPES[hash_]}
            for hash_ in recipes
        ],
        "tasks": [{"label": "needle", "name": "needle", "grader": {"name": "recall"}}],
        "lengths": [900, 1800],
        "num_examples": 8,
        "num_generations": 1,
        "seed": 0,
        "scoring": ["generate"],
        "asked": 0,
        "dropped": [],
        "provenance": {
            "git": "0123456789abcdef+",
            "versions": {"torch": "2.13.0"},
            "hardware": {"processor": "a cpu", "cores": 2, "threads": 2, "gpu": None, "memory_bytes": 8, "load": 0.5},
            "command": "swaa run x.yaml",
            "started": "2026-01-01T00:00:00",
        },
        **others,
    }


def plant(
    folder: Path, records: Iterable[Record], *, stretches: Iterable[Mapping[str, Any]] = (), **others: Any
) -> Path:
    """Write a run's folder; ``others`` go into ``run.json``."""
    folder.mkdir(parents=True)
    lines = [one.to_json() for one in records]
    (folder / "run.json").write_text(json.dumps(info(**{"asked": len(lines), **others})), encoding="utf-8")
    (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    texts = [json.dumps(one) for one in stretches]
    if texts:
        (folder / "perplexity.jsonl").write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")
    return folder
