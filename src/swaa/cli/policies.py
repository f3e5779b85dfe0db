"""``swaa explain`` and ``swaa draw``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from swaa.cli.audit import add_audit_options, run_audit
from swaa.cli.common import add_plugins, make_console
from swaa.errors import UserError, invalid

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers
    from swaa.compiler import ModelShape
    from swaa.policies import AttentionPolicy


def add_explain(subparsers: Subparsers) -> None:
    """``swaa explain POLICY``, ``swaa explain [POLICY] --audit MODEL``"""
    parser = subparsers.add_parser("explain", help="say what a policy shows, costs and keeps on a model, or audit one")
    _add_policy(parser, optional=True)
    seq_len_help = "tokens of the prompt (default: 8192); of an audit, all tokens (default: what shows the policy)"
    parser.add_argument("--seq-len", type=int, metavar="S", help=seq_len_help)
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens generated (default: 64)")
    model = parser.add_argument_group("the model", "a name, or sizes (those of the default model where not given)")
    model.add_argument("--model", metavar="NAME", help="a name of the catalogue, a folder or a hub id")
    model.add_argument("--kv-heads", type=int, metavar="G", help="key-value heads (default: a third of the heads)")
    model.add_argument("--head-dim", type=int, metavar="D", help="size of a head (default: 64)")
    model.add_argument("--hidden-size", type=int, metavar="E", help="of the model (default: heads x size of a head)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where kernels are planned for")
    parser.add_argument("--kernel", default="auto", help="auto, flex, blockwise or dense")
    parser.add_argument("--scores", metavar="EXPR", help="score modifications besides, such as 'ALiBi() + SoftCap(30)'")
    parser.add_argument("--machine", metavar="FILE", help="a bench.json of 'swaa bench': times are predicted with it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_audit_options(parser)
    parser.set_defaults(handler=explain, layers=None, heads=None)


def explain(args: argparse.Namespace) -> int:
    """Print the effective policy of every layer and phase, its cost, and the time it takes."""
    if args.audit is not None:
        if args.scores is not None:
            mend = "An audit asks which keys are visible, and scores hide none."
            raise invalid("--scores", accepted="nothing beside --audit", got=args.scores, mend=mend)
        return run_audit(args, None if args.policy is None else _policy(args))
    if args.policy is None:
        raise UserError("POLICY: this is missing. Give a policy, or --audit MODEL for the one that a model declares.")
    policy = _policy(args)
    from swaa.compiler.explain import explain
    from swaa.compiler.timing import Machine
    from swaa.policies.scores import parse_scores

    data = explain(
        policy,
        _shape(args),
        8192 if args.seq_len is None else args.seq_len,
        args.new_tokens,
        device_type=args.device,
        kernel=args.kernel,
        scores=None if args.scores is None else parse_scores(args.scores),
        machine=None if args.machine is None else Machine.read(args.machine),
    )
    if args.json:
        print(json.dumps(data, indent=2))
    else:
        from swaa.report.explain import explanation_table

        make_console().print(explanation_table(data), highlight=False)
    return 0


def _shape(args: argparse.Namespace) -> ModelShape:
    """The model that is asked about: a named one, or one of the sizes given."""
    sizes = {name: getattr(args, name) for name in ("layers", "heads", "kv_heads", "head_dim", "hidden_size")}
    if args.model is not None:
        for name, value in sizes.items():
            if value is not None:
                option = f"--{name.replace('_', '-')}"
                raise invalid(option, accepted="nothing beside --model", got=value, mend="Give the one or the other.")
        from swaa.hf.loading import DTYPES
        from swaa.hf.shape import shape_of

        return shape_of(args.model, DTYPES[args.dtype])
    from swaa.compiler import ModelShape

    heads = sizes["heads"] or 9
    return ModelShape(
        num_layers=sizes["layers"] or 30,
        num_heads=heads,
        num_kv_heads=sizes["kv_heads"] or (heads // 3 if heads % 3 == 0 else heads),
        head_dim=sizes["head_dim"] or 64,
        bytes_per_value=4 if args.dtype == "float32" else 2,
        hidden_size=sizes["hidden_size"] or 0,
    )


def add_draw(subparsers: Subparsers) -> None:
    """``swaa draw POLICY [-o FILE]``"""
    parser = subparsers.add_parser("draw", help="draw a policy's masks, in the terminal or to a file")
    _add_policy(parser)
    parser.add_argument("--seq-len", type=int, metavar="S", help="tokens drawn (default: what shows the policy)")
    parser.add_argument("--prompt-len", type=int, metavar="P", help="of these, the prompt (default: two thirds)")
    parser.add_argument("-o", "--output", metavar="FILE", help="a .png, .svg or .pdf file instead of text")
    parser.set_defaults(handler=draw)


def draw(args: argparse.Namespace) -> int:
    """Draw one mask for each distinct effective policy."""
    policy = _policy(args)
    from swaa.compiler.picture import fitting_length, mask_pictures
    from swaa.report.draw import to_image, to_text

    length = fitting_length(policy) if args.seq_len is None else args.seq_len
    pictures = mask_pictures(
        policy,
        num_layers=args.layers,
        num_heads=args.heads,
        length=length,
        prompt_length=length * 2 // 3 if args.prompt_len is None else args.prompt_len,
        resolution=512 if args.output else 48,
    )
    print(to_image(pictures, args.output) if args.output else to_text(pictures))
    return 0


def _add_policy(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    policy_help = "for example 'SlidingWindow(128) | SinkTokens(4)'"
    parser.add_argument("policy", metavar="POLICY", help=policy_help, nargs="?" if optional else None)
    parser.add_argument("--layers", type=int, default=30, metavar="L", help="layers of the model (default: 30)")
    parser.add_argument("--heads", type=int, default=9, metavar="H", help="query heads of a layer (default: 9)")
    add_plugins(parser)


def _policy(args: argparse.Namespace) -> AttentionPolicy:
    """The policy of the command line, plugins loaded first; sizes of less than one are refused before."""
    for name in ("layers", "heads", "kv_heads", "head_dim", "hidden_size", "seq_len"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            option = f"--{name.replace('_', '-')}"
            raise invalid(option, accepted="an int >= 1", got=value, mend="Set it to 1 or more.")
    from swaa.policies import load_plugin, parse_policy

    for plugin in args.plugin:
        load_plugin(plugin)
    return parse_policy(args.policy)
