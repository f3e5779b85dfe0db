"""``swaa recall``: how much of a model's full attention falls on what policies show."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from swaa.cli.common import add_plugins, make_console
from swaa.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swaa.cli.common import Subparsers
    from swaa.hf.recall import Recall


def add_recall(subparsers: Subparsers) -> None:
    """``swaa recall POLICY [POLICY ...]``"""
    parser = subparsers.add_parser("recall", help="measure how much of full attention falls on what policies show")
    parser.add_argument("policies", metavar="POLICY", nargs="+", help="for example 'TopBlocks(64, 8)'")
    parser.add_argument("--model", metavar="NAME", help="a name of the catalogue, a folder or a hub id")
    parser.add_argument("--tokens", type=int, default=2048, metavar="S", help="of the prompt, at most (default: 2048)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the needle's prompt (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every layer")
    add_plugins(parser)
    parser.set_defaults(handler=recall)


def recall(args: argparse.Namespace) -> int:
    """Run the model once on a needle's prompt, and print a row a policy."""
    if args.tokens < 64:
        raise invalid("--tokens", accepted="an int >= 64", got=args.tokens, mend="Ask for a longer prompt.")
    from swaa.policies import load_plugin, parse_policy

    for plugin in args.plugin:
        load_plugin(plugin)
    policies = [parse_policy(policy) for policy in args.policies]  # before the model takes its time

    from swaa.hf import load
    from swaa.hf.recall import attention_mass
    from swaa.hf.weights import DEFAULT_MODEL

    model, tokenizer = load(args.model or DEFAULT_MODEL)
    prompt = _prompt(tokenizer, args.tokens, args.seed)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    measured = attention_mass(model, ids, policies)
    if args.json:
        print(json.dumps({"tokens": ids.shape[1], "policies": [vars(one) for one in measured]}, indent=2))
    else:
        make_console().print(_table(measured, ids.shape[1]), highlight=False)
    return 0


def _prompt(tokenizer: Any, length: int, seed: int) -> str:
    """A needle in a haystack, asked for, up to the place where its value comes next; in the chat template."""
    from swaa.tasks.needle import NeedleSingle

    def rendered(prompt: str, answer_prefix: str) -> str:
        text = prompt
        if tokenizer.chat_template is not None:
            turn = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return text + answer_prefix

    def count(prompt: str, answer_prefix: str) -> int:
        return len(tokenizer(rendered(prompt, answer_prefix), add_special_tokens=False).input_ids)

    example = next(iter(NeedleSingle().examples(length=length, num_examples=1, seed=seed, count_tokens=count)))
    return rendered(example.prompt, example.answer_prefix)


def _table(measured: Sequence[Recall], tokens: int) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"a prompt of {tokens:,} tokens; means over layers, heads and queries"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", overflow="fold")
    for heading in ("visible\npairs", "attention mass\non them", "least of\na layer"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in measured:
        table.add_row(one.policy, *(f"{100 * share:.1f}%" for share in (one.mean_pairs, one.mean_mass, min(one.mass))))
    return table
