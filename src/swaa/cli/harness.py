"""``swaa lm-eval``: tasks of lm-evaluation-harness on a model under a policy."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from swaa.cli.common import add_plugins, make_console, say
from swaa.errors import invalid

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers

_PLAIN = ("kernel", "limit", "num_fewshot", "max_length", "truncate", "include_path", "chat_template", "system")
_JSON = ("metadata", "gen_kwargs", "model_args")


def add_lm_eval(subparsers: Subparsers) -> None:
    """``swaa lm-eval --model NAME --tasks A,B``"""
    parser = subparsers.add_parser("lm-eval", help="run tasks of lm-evaluation-harness under a policy")
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="a name of the catalogue, a folder or a hub id")
    add("--tasks", required=True, metavar="A,B", help="tasks, groups, tags, patterns or YAML files, split at commas")
    add("--policy", metavar="POLICY", help="an expression (default: saved with the model, else full attention)")
    add("--kernel", choices=("auto", "flex", "blockwise", "dense"), help="the attention kernel")
    add("--limit", type=float, metavar="N", help="documents of each task; below 1, the share of them")
    add("--batch-size", default="1", metavar="B", help="sequences at a time, or auto (default: 1)")
    add("--num-fewshot", type=int, metavar="K", help="worked examples before each question (default: the task's)")
    add("--max-length", type=int, metavar="T", help="tokens of the longest request (default: the model's)")
    add("--truncate", action="store_true", help="cut longer requests on the left and count them; else they are errors")
    add("--include-path", action="append", metavar="FOLDER", help="tasks of your own; may be repeated")
    add("--metadata", metavar="JSON", help="""what tasks are told: '{"max_seq_lengths": [4096]}'""")
    add("--chat-template", action="store_true", help="wrap prompts in the model's chat template")
    add("--system", metavar="TEXT", help="a system message")
    add("--gen-kwargs", metavar="JSON", help="settings of generation, over those of the tasks")
    add("--dtype", default="auto", help="float32, bfloat16 or float16 (default: the checkpoint's)")
    add("--device", help="such as cpu or cuda:1 (default: CUDA if there is any)")
    add("--model-args", metavar="JSON", help="more arguments of lm-eval's model hf")
    add("-o", "--output", metavar="FOLDER", help="where results.json, samples and the table go (default: nowhere)")
    add_plugins(parser)
    parser.set_defaults(handler=lm_eval)


def lm_eval(args: argparse.Namespace) -> int:
    """Run the tasks, print their table, and write the results where that is asked for."""
    from swaa.policies import load_plugin, parse_policy

    for plugin in args.plugin:
        load_plugin(plugin)
    policy = None if args.policy is None else parse_policy(args.policy)
    settings: dict[str, Any] = {name: getattr(args, name) for name in _PLAIN} | {
        "batch_size": _batch_size(args.batch_size)
    }
    mappings: dict[str, Any] = {name: _mapping(f"--{name.replace('_', '-')}", getattr(args, name)) for name in _JSON}
    hf = {"dtype": args.dtype} | ({} if args.device is None else {"device": args.device}) | mappings.pop("model_args")
    import swaa.harness as harness  # a mistake in the above is told before seconds of imports

    if args.output is not None:
        harness.check_output(args.output)
    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    results = harness.evaluate(args.model, tasks, policy=policy, **settings, **mappings, **hf)
    console = make_console()
    say(console, harness.table(results))
    say(console, f"Policy: {results['swaa']['policy']}")
    if args.output is not None:
        harness.write_results(results, args.output, _provenance())
        say(console, f"Results: {args.output}")
    return 0


def _provenance() -> dict[str, Any]:
    """Commit, versions and command line, as ``results.json`` has them."""
    import importlib.metadata

    from swaa.engine.provenance import git_hash, versions

    return {
        "git": git_hash(),
        "versions": versions() | {"lm_eval": importlib.metadata.version("lm_eval")},
        "command": shlex.join(["swaa", *sys.argv[1:]]),
    }


def _batch_size(text: str) -> int | str:
    if text.partition(":")[0] == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise invalid("--batch-size", accepted="an int >= 1 or 'auto'", got=text, mend="Set it to 1, say.")
    return int(text)


def _mapping(option: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    accepted, mend = "a JSON object", """Write '{"key": 1}', in single quotes."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise invalid(option, accepted=accepted, got=text, mend=mend) from error
    if not isinstance(value, dict):
        raise invalid(option, accepted=accepted, got=text, mend=mend)
    return value
