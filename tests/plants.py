"""Conversations that a tiny model can learn in seconds, and no model could guess."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

ANSWERS = {"moss": "qzx", "fern": "jvk", "reed": "wpl", "iris": "bgt", "sage": "ycm", "rush": "dnf", "dill": "xhq"}

Write = Callable[..., Path]
"""A name and sections -> the fine-tuning file that a fixture of this name writes."""


def conversations() -> list[dict[str, str]]:
    """Two prompts of their own length for every association."""
    draw = random.Random(0)
    lines = []
    for turn in range(2):
        for word, answer in ANSWERS.items():
            filler = " ".join("ab"[draw.randrange(2)] * 3 for _ in range(draw.randrange(8)))
            lines.append({"id": f"{word}-{turn}", "prompt": f"{filler} what of {word}?", "answer": answer})
    return lines


def write_lines(path: Path, lines: list[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path
