"""The command line: parsing only. Each command is one function that adds its parser, and one that carries it out.

Nothing heavy is imported before a command needs it, so that ``swaa --help`` is instant. A mistake of the user's is one
message on standard error and exit code 2; Ctrl-C is exit code 130, and 141 says that nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from swaa import __version__
from swaa.errors import UserError, invalid

if TYPE_CHECKING:
    from rich.console import Console

    from swaa.compiler import ModelShape
    from swaa.config import Benchmark
    from swaa.policies import AttentionPolicy

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

USER_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; the exit code."""
    try:
        args = parse(argv)
        code: int = args.handler(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"swaa: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'Interrupted.'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `swaa ls policies | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at exit
        return BROKEN_PIPE
    return code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with ``handler``: the function that carries the command out and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="swaa",
        description="Write an attention policy once; run it on any full-attention Hugging Face model.",
    )
    parser.add_argument("--version", action="version", version=f"swaa {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    args, rest = parser.parse_known_args(argv)
    if rest:  # argparse leaves overrides that follow an option
        if "overrides" not in args or any(item.startswith("-") for item in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.overrides = [*args.overrides, *rest]
    return args


def add_run(subparsers: Subparsers) -> None:
    """``swaa run FILE [KEY=VALUE …]``"""
    parser = subparsers.add_parser("run", help="run an experiment, or go on with one that was interrupted")
    _add_experiment(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where results go (default: what the file says)")
    parser.add_argument("--fresh", action="store_true", help="delete the folder's former results first")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run an experiment and print its tables."""
    from swaa.config import load_experiment

    experiment = load_experiment(args.file, args.overrides, output=args.output)
    from swaa.engine import run_experiment  # a mistake in the file is told before seconds of imports
    from swaa.report import NOTE, to_rich

    rows = run_experiment(experiment, fresh=args.fresh)
    console = _console()
    for table in to_rich(rows):
        console.print(table)
    console.print(NOTE, style="dim", markup=False)
    console.print(f"Records and tables: {experiment.output}", highlight=False, soft_wrap=True)
    return 0


def add_validate(subparsers: Subparsers) -> None:
    """``swaa validate FILE [KEY=VALUE …]``"""
    parser = subparsers.add_parser("validate", help="check an experiment or benchmark file without running it")
    _add_experiment(parser)
    parser.set_defaults(handler=validate, output=None)


def validate(args: argparse.Namespace) -> int:
    """Check an experiment or benchmark file and print what it would run."""
    from swaa.config import Benchmark, load_file

    experiment = load_file(args.file, args.overrides)
    if isinstance(experiment, Benchmark):
        return _validate_benchmark(args.file, experiment)
    counts = {
        "recipes": len(experiment.recipes),
        "tasks": len(experiment.tasks),
        "lengths": len(experiment.lengths),
        "examples": experiment.num_examples,
    }
    grid = " x ".join(f"{count} {name if count > 1 else name[:-1]}" for name, count in counts.items())
    total = experiment.num_samples
    console = _console()
    where = f"on {experiment.model.name} -> {experiment.output}"
    console.print(
        f"{args.file} is valid: {grid} = {total} sample{'s' * (total > 1)} {where}", highlight=False, soft_wrap=True
    )
    for recipe in experiment.recipes:
        console.print(f"  {recipe.name}: {recipe.policy!r}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _validate_benchmark(file: str, benchmark: Benchmark) -> int:
    total = len(benchmark.entries) * len(benchmark.lengths) * benchmark.repeats
    sizes = f"{len(benchmark.entries)} rows x {len(benchmark.lengths)} lengths x {benchmark.repeats} repeats"
    line = f"{file} is valid: {sizes} = {total} requests on {benchmark.model.label} -> {benchmark.output}"
    console = _console()
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    for baseline in benchmark.baselines:
        console.print(f"  {baseline.name}", highlight=False, markup=False)
    for recipe in benchmark.recipes:
        console.print(f"  {recipe.name}: {recipe.policy!r}", highlight=False, markup=False, soft_wrap=True)
    return 0


def add_bench(subparsers: Subparsers) -> None:
    """``swaa bench FILE [KEY=VALUE …]``"""
    parser = subparsers.add_parser("bench", help="time recipes and baselines on a model, or go on with it")
    _add_experiment(parser, "the benchmark, in YAML", "a field to set, such as lengths=[512] or model.dtype=float32")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where results go (default: what the file says)")
    parser.add_argument("--fresh", action="store_true", help="delete the folder's former timings first")
    parser.set_defaults(handler=bench)


def bench(args: argparse.Namespace) -> int:
    """Run a benchmark and print its tables; the exit code is 1 if a row is not equal to the dense mask."""
    from swaa.config import load_benchmark

    benchmark = load_benchmark(args.file, args.overrides, output=args.output)
    from swaa.engine.bench import run_benchmark  # a mistake in the file is told before seconds of imports
    from swaa.report.bench_table import NOTE, facts, to_rich

    result = run_benchmark(benchmark, fresh=args.fresh)
    console = _console()
    for line in facts(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for table in to_rich(result):
        console.print(table)
    console.print(NOTE, style="dim", markup=False)
    console.print(f"Timings, tables and plots: {benchmark.output}", highlight=False, soft_wrap=True)
    return 0 if result.sound else 1


def add_ls(subparsers: Subparsers) -> None:
    """``swaa ls policies|tasks|models``"""
    parser = subparsers.add_parser("ls", help="list what there is")
    parser.add_argument("what", choices=sorted(LISTINGS))
    _add_plugins(parser)
    parser.set_defaults(handler=ls)


def ls(args: argparse.Namespace) -> int:
    """Print a listing, one name a line with what it is."""
    from rich.table import Table

    from swaa.policies import load_plugin

    for plugin in args.plugin:
        load_plugin(plugin)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for line in LISTINGS[args.what]():
        table.add_row(*line)
    _console().print(table, highlight=False, markup=False)
    return 0


def list_policies() -> list[tuple[str, ...]]:
    """Name, meaning and an example of each policy."""
    from swaa.policies import get_policy, policy_names

    classes = [get_policy(name) for name in policy_names()]
    return [(kind.__name__, _summary(kind), repr(kind.examples()[0])) for kind in classes]


def list_tasks() -> list[tuple[str, ...]]:
    """Name, meaning and parameters (with their defaults) of each task."""
    from swaa.tasks import get_task, task_names

    def parameters(task: type) -> str:
        return ", ".join(f"{field.name}: {json.dumps(field.default)}" for field in dataclasses.fields(task))

    return [(name, f"{_summary(get_task(name))}\n{parameters(get_task(name))}") for name in task_names()]


def list_models() -> list[tuple[str, ...]]:
    """Name, licence and size of each model that needs no model hub."""
    from swaa.hf.weights import CATALOGUE

    return [(model.name, model.licence, f"{model.num_bytes / 1e6:.0f} MB") for model in CATALOGUE.values()]


def add_fetch(subparsers: Subparsers) -> None:
    """``swaa fetch NAME``"""
    parser = subparsers.add_parser("fetch", help="download a model of the catalogue into the cache")
    parser.add_argument("name", metavar="NAME", help="see 'swaa ls models'")
    parser.set_defaults(handler=fetch)


def fetch(args: argparse.Namespace) -> int:
    """Fetch a model and print its folder."""
    from swaa.hf.weights import fetch

    print(fetch(args.name))
    return 0


def add_explain(subparsers: Subparsers) -> None:
    """``swaa explain POLICY``"""
    parser = subparsers.add_parser("explain", help="say what a policy shows, costs and keeps on a model")
    _add_policy(parser)
    parser.add_argument("--seq-len", type=int, default=8192, metavar="S", help="tokens of the prompt (default: 8192)")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens generated (default: 64)")
    model = parser.add_argument_group("the model", "a name, or sizes (those of the default model where not given)")
    model.add_argument("--model", metavar="NAME", help="a name of the catalogue, a folder or a hub id")
    model.add_argument("--kv-heads", type=int, metavar="G", help="key-value heads (default: a third of the heads)")
    model.add_argument("--head-dim", type=int, metavar="D", help="size of a head (default: 64)")
    model.add_argument("--hidden-size", type=int, metavar="E", help="of the model (default: heads x size of a head)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where kernels are planned for")
    parser.add_argument("--kernel", default="auto", help="auto, flex, blockwise or dense")
    parser.add_argument("--machine", metavar="FILE", help="a bench.json of 'swaa bench': times are predicted with it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=explain, layers=None, heads=None)


def explain(args: argparse.Namespace) -> int:
    """Print the effective policy of every layer and phase, its cost, and the time it takes."""
    policy = _policy(args)
    from swaa.compiler.explain import explain
    from swaa.compiler.timing import Machine

    data = explain(
        policy,
        _shape(args),
        args.seq_len,
        args.new_tokens,
        device_type=args.device,
        kernel=args.kernel,
        machine=None if args.machine is None else Machine.read(args.machine),
    )
    if args.json:
        print(json.dumps(data, indent=2))
    else:
        from swaa.report.explain import explanation_table

        _console().print(explanation_table(data), highlight=False)
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


LISTINGS: dict[str, Callable[[], list[tuple[str, ...]]]] = {
    "policies": list_policies,
    "tasks": list_tasks,
    "models": list_models,
}
COMMANDS: tuple[Callable[[Subparsers], None], ...] = (
    add_run,
    add_bench,
    add_validate,
    add_ls,
    add_fetch,
    add_explain,
    add_draw,
)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="for example 'SlidingWindow(128) | SinkTokens(4)'")
    parser.add_argument("--layers", type=int, default=30, metavar="L", help="layers of the model (default: 30)")
    parser.add_argument("--heads", type=int, default=9, metavar="H", help="query heads of a layer (default: 9)")
    _add_plugins(parser)


def _add_plugins(parser: argparse.ArgumentParser) -> None:
    plugin_help = "a file or module with policies of your own; may be repeated"
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help=plugin_help)


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


def _add_experiment(
    parser: argparse.ArgumentParser,
    file: str = "the experiment, in YAML",
    override: str = "a field to set, such as recipes[0].decoding.max_new_tokens=8",
) -> None:
    parser.add_argument("file", metavar="FILE", help=file)
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=override)


def _console() -> Console:
    """Standard output; wide enough for any table where it is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def _summary(documented: object) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().partition("\n")[0]
