"""``evaluate``: lm-eval's tasks on a model under a policy, in this process; its results as a table and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.utils import handle_non_serializable, make_table

from swaa.errors import UserError, invalid
from swaa.harness.model import SwaaLM
from swaa.harness.policy import PolicyLike
from swaa.harness.tasks import find_tasks
from swaa.hf.loading import model_source
from swaa.hf.spec import policy_on
from swaa.policies import policy_to_dict

RESULTS, TABLE = "results.json", "table.md"
Results = dict[str, Any]


def evaluate(
    model: Any,
    tasks: str | Sequence[str],
    *,
    policy: PolicyLike | None = None,
    kernel: str | None = None,
    limit: float | None = None,
    batch_size: int | str = 1,
    num_fewshot: int | None = None,
    max_length: int | None = None,
    truncate: bool = False,
    include_path: str | Path | Sequence[str | Path] | None = None,
    metadata: Mapping[str, Any] | None = None,
    chat_template: bool = False,
    system: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    log_samples: bool = True,
    bootstrap_iters: int = 100_000,
    **hf: Any,
) -> Results:
    """Evaluate a model under a policy on tasks of lm-evaluation-harness.

    Args:
        model: a catalogue name, a local folder, a hub id, or a transformers model (then give its ``tokenizer``, too),
            which is left as it was.
        tasks: names of tasks, groups or tags, patterns such as ``ruler_*``, or YAML files.
        policy: which earlier tokens a query may attend to. None: what is saved with the model, else full attention.
        kernel: see :func:`swaa.apply_policy`.
        limit: documents of each task, or, below 1, the share of them. None is all.
        batch_size: sequences at a time, or "auto".
        num_fewshot: worked examples before each question; None is what the task says.
        max_length: tokens of the longest request; None is what the model's config says.
        truncate: cut longer requests on the left, and count them, instead of refusing them.
        include_path: folders that hold tasks of your own.
        metadata: what tasks are told, such as ``{"max_seq_lengths": [4096]}`` for RULER, which gets the model's
            tokenizer from here without being told.
        chat_template: whether prompts are wrapped in the model's chat template, once.
        system: a system message.
        gen_kwargs: settings of generation, over those of the tasks.
        log_samples: whether the results hold every request and answer, under ``"samples"``.
        bootstrap_iters: resamplings for standard errors of metrics that are no means; 0 for no standard errors.
        hf: further arguments of lm-eval's model ``hf``: ``tokenizer``, ``dtype``, ``device``, ``peft``, …

    Returns:
        What lm-eval's ``simple_evaluate`` returns, and under ``"swaa"`` the recipe: ``policy`` (the Python expression),
        ``policy_dict``, ``kernel``, ``max_length``, ``truncated`` (requests that were cut, by task) and the settings.

    Raises:
        UserError: there is no such task, model or policy; a task's data cannot be had; a request is too long.
    """
    _check_limit(limit)
    source = model_source(model) if isinstance(model, str | Path) else None
    told = {} if source is None else {"pretrained": source}
    tokenizer = hf.get("tokenizer")
    if tokenizer is not None:
        told["tokenizer"] = tokenizer if isinstance(tokenizer, str) else tokenizer.name_or_path
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    manager, names = find_tasks(names, include_path, told | dict(metadata or {}))
    options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
    lm = SwaaLM(model, policy=policy, kernel=kernel, truncate=truncate, batch_size=batch_size, **options, **hf)
    try:
        results: Results | None = lm_eval.simple_evaluate(
            lm,
            tasks=names,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            limit=limit,
            bootstrap_iters=bootstrap_iters,
            log_samples=log_samples,
            system_instruction=system,
            apply_chat_template=chat_template,
            gen_kwargs=dict(gen_kwargs) if gen_kwargs else None,
            task_manager=manager,
        )
        assert results is not None, "one process, so this is the first"
        on = policy_on(lm.model.config)
        results["swaa"] = {
            "model": str(model) if source is not None else lm.model.config._name_or_path,
            "policy": repr(on.policy),
            "policy_dict": policy_to_dict(on.policy),
            "kernel": on.kernel,
            "chat_template": chat_template,
            "system": system,
            "num_fewshot": num_fewshot,
            "gen_kwargs": dict(gen_kwargs or {}),
            "limit": limit,
            "batch_size": batch_size,
            "max_length": lm.max_length,
            "truncated": dict(lm.truncated),
        }
    finally:
        lm.handle.remove()
    return results


def table(results: Results) -> str:
    """lm-eval's table of the results in Markdown, with groups below, and what was cut."""
    parts = [make_table(results)]
    if results.get("groups"):
        parts.append(make_table(results, "groups"))
    cut = results["swaa"]["truncated"]
    parts += [f"{task}: {number} requests were cut on the left to fit." for task, number in cut.items()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def check_output(folder: str | Path) -> Path:
    """The folder that results are to go to.

    Raises:
        UserError: it holds results already, or is a file.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"output: {path} is a file. Choose a folder.")
    if (path / RESULTS).exists():
        raise UserError(f"output: {path} holds results already. Choose another folder; nothing in it was touched.")
    return path


def write_results(results: Results, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> list[Path]:
    """Write ``results.json``, ``table.md`` and one ``samples_TASK.jsonl`` a task; the files.

    Args:
        results: of :func:`evaluate`.
        folder: a new or empty one.
        provenance: what ``results.json`` has under ``"provenance"``: commit, versions, command.
    """
    path = check_output(folder)
    path.mkdir(parents=True, exist_ok=True)
    written = []
    for task, samples in results.get("samples", {}).items():
        written.append(path / f"samples_{task.replace('/', '_')}.jsonl")
        written[-1].write_text("".join(f"{_json(sample)}\n" for sample in samples), encoding="utf-8")
    written.append(path / TABLE)
    written[-1].write_text(table(results), encoding="utf-8")
    rest = {key: value for key, value in results.items() if key != "samples"}
    if provenance is not None:
        rest["provenance"] = dict(provenance)
    written.append(path / RESULTS)  # last: where it is, all is
    written[-1].write_text(_json(rest, indent=2) + "\n", encoding="utf-8")
    return written


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, indent=indent)


def _check_limit(limit: float | None) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0 or (limit > 1 and limit % 1):
        accepted = "a number of documents >= 1, or a share of them in (0, 1)"
        raise invalid("limit", accepted=accepted, got=limit, mend="Leave it out for all documents.")
