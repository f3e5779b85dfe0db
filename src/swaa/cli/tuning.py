"""``swaa finetune``, ``swaa distill`` and ``swaa merge``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from swaa.cli.common import add_job, make_console, say

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers


def add_finetune(subparsers: Subparsers) -> None:
    """``swaa finetune FILE [KEY=VALUE …]``"""
    add_job(
        subparsers,
        "finetune",
        finetune,
        "fine-tune a model under a policy, or go on with it",
        file="the fine-tuning, in YAML",
        override="a field to set, such as train.max_steps=10",
        former="training",
    )


def finetune(args: argparse.Namespace) -> int:
    """Fine-tune, publish the merged model, and print the figures before and after."""
    from swaa.config import load_finetuning

    config = load_finetuning(args.file, args.overrides, output=args.output)
    from swaa.engine.tuning import run_finetuning  # a mistake in the file is told before seconds of imports
    from swaa.report import to_rich

    outcome = run_finetuning(config, fresh=args.fresh)
    if outcome is None:  # a process that only helps
        return 0
    console = make_console()
    for when, rows in outcome.rows.items():
        say(console, f"{when.capitalize()}:")
        for table in to_rich(list(rows)):
            console.print(table)
    if outcome.delta_nll is not None:
        line = f"Text far from the task, full attention: {outcome.delta_nll:+.4f} nats a token."
        say(console, line)
    say(console, f"Model: {outcome.merged}. Report: {config.output}/report.md")
    return 0


def add_distill(subparsers: Subparsers) -> None:
    """``swaa distill FILE [KEY=VALUE …]``"""
    add_job(
        subparsers,
        "distill",
        distill,
        "make training data of the model's own right answers",
        file="the distillation, in YAML",
        override="a field to set, such as samples_per_prompt=8 or keep=all",
        former="answers",
    )


def distill(args: argparse.Namespace) -> int:
    """Let the model answer, keep what is right, and say how much that is."""
    from swaa.config import load_distillation

    config = load_distillation(args.file, args.overrides, output=args.output)
    from swaa.engine.distill import run_distillation  # a mistake in the file is told before seconds of imports

    result = run_distillation(config, fresh=args.fresh)
    console = make_console()
    for line in (*result.lines(), f"Data: {', '.join(map(str, result.files))}"):
        say(console, line)
    return 0


def add_merge(subparsers: Subparsers) -> None:
    """``swaa merge RUN``"""
    parser = subparsers.add_parser("merge", help="publish a checkpoint of a fine-tuning as a plain model")
    parser.add_argument("run", metavar="RUN", help="the folder of a fine-tuning, finished or not")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where the model goes")
    parser.add_argument("--checkpoint", metavar="NAME", help="such as step-000040 or best (default: as configured)")
    parser.set_defaults(handler=merge)


def merge(args: argparse.Namespace) -> int:
    """Merge a checkpoint into its base model and write a plain transformers checkpoint with the policy."""
    import dataclasses

    from swaa.config import load_finetuning
    from swaa.engine.tuning.checkpoint import named
    from swaa.engine.tuning.folder import CONFIG
    from swaa.engine.tuning.run import chosen_checkpoint, publish_checkpoint
    from swaa.errors import UserError

    run = Path(args.run)
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: expected the folder of a fine-tuning, and it has no {CONFIG}. Check the path.")
    config = dataclasses.replace(load_finetuning(run / CONFIG), output=run)
    checkpoints = run / "checkpoints"
    checkpoint = chosen_checkpoint(config) if args.checkpoint is None else named(checkpoints, args.checkpoint)
    if checkpoint is None:
        there = ", ".join(sorted(path.name for path in checkpoints.glob("[!.]*"))) or "none"
        raise UserError(f"--checkpoint: there is no {args.checkpoint!r} in {run}. There are: {there}.")
    folder = Path(args.output)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output: {folder} is not empty. Choose another folder; nothing in it was touched.")
    publish_checkpoint(config, checkpoint, folder)
    say(make_console(), f"Model: {args.output}")
    return 0
