"""The policy of an lm-eval model, out of the arguments that lm-eval hands on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swaa.errors import UserError
from swaa.policies import AttentionPolicy, parse_policy

PolicyLike = AttentionPolicy | str | Mapping[str, Any]


def chosen_policy(policy: PolicyLike | None, file: str | Path | None) -> AttentionPolicy | None:
    """The policy given as a value, or read from a text file that holds an expression; None where neither is given.

    Raises:
        UserError: both are given; the file cannot be read; there is no such policy. Of an expression whose brackets
            do not close it is said that lm-eval has cut it: its ``model_args`` end at every comma.
    """
    if file is None:
        return None if policy is None else _parsed(policy)
    if policy is not None:
        raise UserError(f"policy_file: expected no policy beside it, got both ({policy!r}). Give one of them.")
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"policy_file: {file} cannot be read ({error}). Give a text file.") from error
    try:
        return parse_policy(text)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _parsed(policy: PolicyLike) -> AttentionPolicy:
    try:
        return parse_policy(policy)
    except UserError as error:
        if not isinstance(policy, str) or policy.count("(") == policy.count(")"):
            raise
        raise UserError(
            f"{error} Was it given to lm-eval's --model_args? These end at every comma. Write it to a file and give "
            f"policy_file=FILE, or run `swaa lm-eval --policy …`."
        ) from error
