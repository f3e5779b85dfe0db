"""A trained model as a checkpoint that others can use: plain weights, the policy in its config, a model card."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from swaa.errors import UserError, invalid
from swaa.hf.apply import apply_policy
from swaa.hf.lora import merged
from swaa.hf.weights import CATALOGUE
from swaa.policies import AttentionPolicy, parse_policy

CARD = "README.md"
"""The name of the model card, which model hubs show."""


def publish(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    policy: AttentionPolicy | str | Mapping[str, Any],
    card: str,
    kernel: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Write a plain transformers checkpoint that carries a policy: :func:`swaa.load` brings both back.

    The adapter, if there is one, is merged into a copy; the model stays as it is. The folder is made aside and renamed
    into place when it is complete, so it is never there in part.

    Args:
        model: a transformers model, with or without a LoRA adapter, with or without a policy on it.
        tokenizer: goes along, with its chat template.
        folder: where to; it and the folders above it are made.
        policy: what the checkpoint will run under, whatever is on the model now.
        card: the model card, see :func:`model_card`.
        kernel: saved with the policy, see :func:`swaa.apply_policy`.
        overwrite: replace a folder that has a checkpoint in it.

    Returns:
        The folder.

    Raises:
        UserError: the folder is not empty, or cannot be written; a weight is not finite; and everything that
            ``merged`` and ``apply_policy`` raise.
    """
    folder = Path(folder).expanduser().absolute()
    _refuse_to_lose(folder, overwrite)
    plain = merged(model)
    _refuse_not_finite(plain)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.partial-", dir=folder.parent) as aside:
            made = Path(aside) / "checkpoint"
            with apply_policy(plain, policy, kernel=kernel):
                plain.save_pretrained(made)
            tokenizer.save_pretrained(made)
            (made / CARD).write_text(card, encoding="utf-8")
            _refuse_to_lose(folder, overwrite)  # it may have come while we were writing
            if folder.exists():
                folder.rename(Path(aside) / "replaced")
            made.rename(folder)
    except (OSError, SafetensorError) as error:
        mend = "Make room there, or choose a folder that you can write to."
        raise UserError(f"cannot write the checkpoint {folder}: {error}. {mend}") from error
    return folder


def _refuse_not_finite(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise UserError(
                f"cannot publish: the weight {name} is not finite everywhere, so that the model says nothing. Use an "
                f"earlier checkpoint of the training."
            )


def _refuse_to_lose(folder: Path, overwrite: bool) -> None:
    """Refuses a folder whose contents would be lost, unless they are a checkpoint and may be."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder to write a checkpoint to, got a file. Choose another name.")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{folder}: the folder is not empty. Choose another one, or pass overwrite=True to replace it.")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: the folder is not empty, and no checkpoint (it has no config.json), so it is not replaced. "
            f"Choose another one."
        )


# --- the model card ---


def model_card(
    *,
    base: str,
    policy: AttentionPolicy | str | Mapping[str, Any],
    recipe_facts: Mapping[str, object],
    results: Sequence[Mapping[str, object]],
    license: str,
) -> str:
    """A model card: what the model is, how to load it, how it was trained, what it scores.

    Args:
        base: the model that was fine-tuned: a hub id, or a catalogue name, which stands for its hub id.
        policy: what the model runs under.
        recipe_facts: how it was trained, as rows of a table: name and value.
        results: what it scores, as rows of a table; their columns are the union of the rows' keys.
        license: of the weights, as an SPDX identifier.

    Raises:
        UserError: ``base`` or ``license`` is blank or longer than a line; the policy cannot be read.
    """
    base_name = CATALOGUE[base].hub_id if base in CATALOGUE else _one_line("base", base)
    data = ModelCardData(
        base_model=base_name,
        library_name="transformers",
        license=_one_line("license", license).lower(),  # as model hubs spell them
        pipeline_tag="text-generation",
        tags=["swaa", "sparse-attention"],
    )
    expression = str(parse_policy(policy))
    short = base_name.rstrip("/").rpartition("/")[2]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_escaped(short)} under an attention policy",
        f"{_escaped(base_name)}, fine-tuned with swaa to run under this attention policy:",
        f"```python\n{expression}\n```",
        "## How to load it",
        "The policy is in the checkpoint's config, and swaa puts it on:",
        '```python\nimport swaa\n\nmodel, tokenizer = swaa.load("path or hub id of this model")\n```',
        "**Other loaders run it with full attention.** They load the same weights and leave the policy off; "
        "transformers then reports the unexpected tensor `policy_is_off_unless_loaded_with_swaa`, and stricter loaders "
        "refuse the checkpoint. To run it with full attention on purpose: `swaa.load(path, swaa.FullAttention())`.",
    ]
    if recipe_facts:
        rows = [{"Setting": name, "Value": value} for name, value in recipe_facts.items()]
        parts += ["## Training", _table(rows)]
    if results:
        parts += ["## Results", _table(results)]
    return "\n\n".join(parts) + "\n"


def _one_line(field: str, value: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value.splitlines()) > 1:
        raise invalid(field, accepted="one line of text", got=value, mend="Give its name.")
    return value.strip()


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; a column that a row lacks is empty there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[_escaped(name) for name in columns], ["---"] * len(columns)]
    lines += [[_escaped(_text(row[name])) if name in row else "" for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return "none" if value is None else str(value)


_MARKUP = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown or HTML would take for markup; an underscore inside a word is none."""


def _escaped(text: str) -> str:
    """Text, to be shown as it is on one line of Markdown."""
    return " ".join(_MARKUP.sub(lambda found: "\\" + found[0], str(text)).split())
