"""Whose line an error comes from: the author's of the policy, or another's."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_SWAA = Path(__file__).parents[1]
_PYTHON = sysconfig.get_path("stdlib")


def author_line(error: BaseException) -> str:
    """In brackets, file, line and text of the last step that was the author's; nothing where none was."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_the_authors(frame.filename)]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""


def _is_the_authors(file: str) -> bool:
    """Is it none of Python's, torch's, transformers' or swaa's own, its policies apart?"""
    if str(_SWAA) in file:
        return f"{_SWAA}/policies/zoo" in file
    if "site-packages" in file:
        return not any(f"site-packages/{package}/" in file for package in ("torch", "transformers", "accelerate"))
    return not file.startswith((_PYTHON, "<frozen", "<string>"))
