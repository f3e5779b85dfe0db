"""``swaa new-policy``: a working policy, its test, an experiment and a page about it, to be changed into one's own."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
from pathlib import Path
from typing import TYPE_CHECKING

from swaa.errors import UserError, invalid

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers

_POLICY = '''"""{name}: what it shows, in one line."""

from dataclasses import dataclass

import swaa


@swaa.register_policy
@dataclass(frozen=True, repr=False)
class {name}(swaa.Predicate):
    """The last ``window_size`` tokens, the query's own included, and every ``stride``-th token: visible iff
    ``q - k < window_size or k % stride == 0``.

    Change this docstring, ``visible`` and the fields to what your policy is; name its source, if it has one.

    Args:
        window_size: visible tokens, the query's own included, at least 1.
        stride: distance of the tokens that all queries see, at least 1.
    """

    window_size: int
    stride: int = 16

    def __post_init__(self):
        self.require_int("window_size", at_least=1)
        self.require_int("stride", at_least=1)

    def visible(self, q, k):
        return (q - k < self.window_size) | (k % self.stride == 0)

    @classmethod
    def examples(cls):
        return cls(4, 8), cls(1, 1), cls(64)
'''

_TEST = '''"""{name}, against a loop that says the same in other words, and through everything that swaa makes of it."""

from pathlib import Path

from swaa.policies import load_plugin
from swaa.testing import check_policy

{name} = load_plugin(str(Path(__file__).with_name("{file}.py"))).{name}


def oracle(policy, q, k):
    """The definition once more, on plain ints, not copied from visible."""
    window = range(q - policy.window_size + 1, q + 1)
    return k in window or k in range(0, q + 1, policy.stride)


def test_{file}():
    check_policy({name}, oracle=oracle, flex=False).require()
'''

_PAGE = """# {name}

One sentence: what it shows, and what for.

A query at position `q` sees the key at `k` iff `q - k < window_size` or `k % stride == 0`.

`swaa draw "{example}" --plugin {file}.py --seq-len 24 --layers 1 --heads 1` (queries downwards, keys to the right):

{picture}

`{file}.yaml` puts it into a table, beside full attention and a plain window.
"""

_EXPERIMENT = """# {name} in a table, asked what the quickstart asks:
#   swaa run {experiment}
# Quote an expression that has commas or brackets: policy: "{name}(128, 16).in_phase('prefill')"

plugins: [{plugin}]
recipes:
  - {{name: full attention, policy: FullAttention()}}
  - {{name: naive window, policy: SlidingWindow(128)}}
  - {{name: {file}, policy: {{policy: {name}, window_size: 128, stride: 16}}}}
tasks:
  - name: needle_multikey
lengths: [900]
num_examples: 8
decoding: {{max_new_tokens: 24, stop: ["\\n"]}}
"""


def add_new_policy(subparsers: Subparsers) -> None:
    """``swaa new-policy NAME [--folder FOLDER]``"""
    parser = subparsers.add_parser(
        "new-policy", help="write a policy of your own, with its test, an experiment and its page"
    )
    parser.add_argument("name", metavar="NAME", help="its name in Python and YAML, such as MyWindow")
    parser.add_argument("--folder", default=".", metavar="FOLDER", help="where the files go (default: here)")
    parser.set_defaults(handler=new_policy)


def new_policy(args: argparse.Namespace) -> int:
    """Write the four files and print what to type next."""
    name = class_name(args.name)
    folder = Path(args.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"--folder: the folder {args.folder} does not exist. Create it first.")
    file = file_name(name)
    paths = {kind: folder / f"{stem}" for kind, stem in _files(file).items()}
    for path in paths.values():
        if path.exists():
            raise UserError(f"{path}: the file exists already. Choose another name, or another --folder.")
    fields = {"name": name, "file": file, "example": f"{name}(4, 8)"}
    fields |= {"plugin": str(paths["policy"]), "experiment": str(paths["experiment"])}
    try:
        paths["policy"].write_text(_POLICY.format(**fields), encoding="utf-8")
        paths["test"].write_text(_TEST.format(**fields), encoding="utf-8")
        paths["experiment"].write_text(_EXPERIMENT.format(**fields), encoding="utf-8")
        paths["page"].write_text(_PAGE.format(**fields, picture=_picture(paths["policy"], fields["example"])), "utf-8")
    except OSError as error:
        raise UserError(f"--folder: cannot write to {args.folder} ({error.strerror}). Choose another one.") from None
    policy = paths["policy"]
    print(
        f"Wrote {', '.join(map(str, paths.values()))}.\n"
        f"It works as it stands. Change {policy}, and then:\n\n"
        f"  swaa check {policy}:{name} --oracle {paths['test']}:oracle\n"
        f"  pytest {paths['test']}\n"
        f'  swaa draw "{fields["example"]}" --plugin {policy}\n'
        f'  swaa explain "{fields["example"]}" --plugin {policy}\n'
        f"  swaa run {paths['experiment']}\n"
        f"  swaa report runs/{file} -o report.html --plugin {policy}"
    )
    return 0


def class_name(text: str) -> str:
    """The class's name, from ``MyWindow`` or ``my_window``.

    Raises:
        UserError: it makes no name of a class, or one that is taken.
    """
    name = "".join(part[:1].upper() + part[1:] for part in re.split(r"[_-]", text))
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(name):
        accepted = "letters and digits that begin with a letter"
        raise invalid("NAME", accepted=accepted, got=text, mend="Write for example MyWindow.")
    from swaa.policies.registry import pattern_names, policy_names

    taken = {known.lower(): known for known in (*policy_names(), *pattern_names())}
    if name.lower() in taken:
        known = taken[name.lower()]
        raise UserError(f"NAME: there is a policy {known!r} already. Choose another name, such as My{known}.")
    return name


def file_name(name: str) -> str:
    """The stem of a policy's files: ``my_window`` for ``MyWindow``.

    Raises:
        UserError: a file of that name would hide a module, or be taken for a test.
    """
    file = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    module = importlib.util.find_spec(file)
    reason = ""
    if module is not None and module.origin is not None:  # of a mere folder there is none
        reason = "hide the module of that name"
    elif keyword.iskeyword(file):
        reason = "have no import"
    elif file.startswith("test_"):
        reason = "be taken for a test"
    if reason:
        raise UserError(f"NAME: the file {file}.py would {reason}. Choose another name, such as My{name}.")
    return file


def _files(file: str) -> dict[str, str]:
    return {"policy": f"{file}.py", "test": f"test_{file}.py", "experiment": f"{file}.yaml", "page": f"{file}.md"}


def _picture(file: Path, expression: str) -> str:
    """The mask of an example, as ``swaa draw`` has it, indented."""
    from swaa.compiler.picture import mask_pictures
    from swaa.policies import load_plugin, parse_policy
    from swaa.report.draw import to_text

    load_plugin(str(file))
    policy = parse_policy(expression)
    pictures = mask_pictures(policy, num_layers=1, num_heads=1, length=24, prompt_length=16, resolution=48)
    return "\n".join(f"    {line}".rstrip() for line in to_text(pictures).splitlines())
