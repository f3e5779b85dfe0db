"""``swaa explain --audit MODEL``: what a model does, held against what it declares."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from swaa.cli.common import make_console, say
from swaa.errors import invalid

if TYPE_CHECKING:
    from swaa.policies import AttentionPolicy

DIFFERS = 1


def add_audit_options(parser: argparse.ArgumentParser) -> None:
    """The options of an audit, for the parser of ``swaa explain``."""
    group = parser.add_argument_group(
        "audit", "probe a running model; exit code 1 says that it does not do as declared"
    )
    group.add_argument("--audit", metavar="MODEL", help="a name of the catalogue, a folder or a hub id")
    group.add_argument("--plain", action="store_true", help="load it by transformers alone, without swaa's policy")
    group.add_argument("--attn", metavar="NAME", help="with --plain: the attention implementation, such as eager")
    group.add_argument("--prompt-len", type=int, metavar="P", help="of --seq-len, the prompt (default: all but 16)")
    group.add_argument("--keys", type=int, metavar="N", help="keys to probe (default: all of up to 48, else 16)")


def run_audit(args: argparse.Namespace, policy: AttentionPolicy | None) -> int:
    """Load the model, audit it and print what was found; the exit code is 1 where something differs."""
    _check(args)
    from swaa.hf.audit import audit
    from swaa.hf.loading import load, load_plain
    from swaa.report.audit import audit_text

    if args.plain:
        model = load_plain(args.audit, device=args.device, attn_implementation=args.attn)
    else:
        kernel = None if args.kernel == "auto" else args.kernel
        model, _ = load(args.audit, policy, device=args.device, kernel=kernel)
    found = audit(model, policy, seq_len=args.seq_len, prompt_len=args.prompt_len, num_keys=args.keys)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        console = make_console()
        for line in audit_text(found.to_dict()).splitlines():
            say(console, line)
    return 0 if found.agrees else DIFFERS


def _check(args: argparse.Namespace) -> None:
    """Refuse options that an audit has no use for."""
    for name in ("model", "layers", "heads", "kv_heads", "head_dim", "hidden_size", "machine"):
        value = getattr(args, name)
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise invalid(
                option, accepted="nothing beside --audit", got=value, mend="The model itself tells its sizes."
            )
    if args.attn is not None and not args.plain:
        mend = "Add --plain, or leave it out: under swaa, attention is swaa's."
        raise invalid("--attn", accepted="nothing without --plain", got=args.attn, mend=mend)
