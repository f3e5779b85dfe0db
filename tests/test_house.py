"""The walls of the house: which part of swaa may import which, and who alone may import a heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "swaa"
MAX_LINES = 400

# part of swaa -> the parts that it may import, besides itself. `cli` and the public names may import all.
MAY_IMPORT = {
    "errors": set(),
    "home": set(),
    "named": {"errors"},
    "reading": {"errors"},
    "jsonlines": {"errors"},
    "markdown": set(),
    "policies": {"errors"},
    "compiler": {"errors", "policies"},
    "hf": {"errors", "home", "policies", "compiler"},
    "testing": {"errors", "reading", "policies", "compiler", "hf"},
    "harness": {"errors", "reading", "policies", "compiler", "hf"},
    "tasks": {"errors", "named", "reading", "graders", "prompting"},
    "graders": {"errors", "home", "named", "reading"},
    "report": {"errors", "reading", "jsonlines", "markdown"},
    "prompting": {"errors", "reading"},
    "recipe": {"errors", "reading", "policies", "prompting"},
    "config": {"errors", "reading", "policies", "tasks", "graders", "prompting", "recipe"},
    "engine": {
        *("errors", "reading", "jsonlines", "markdown", "policies", "compiler", "hf"),
        *("tasks", "graders", "report", "prompting", "recipe", "config"),
    },
    "search": {
        *("errors", "named", "reading", "jsonlines", "markdown", "policies", "compiler", "hf"),
        *("tasks", "graders", "report", "prompting", "recipe", "config", "engine"),
    },
}
EVERYTHING = {"cli", "__init__", "__main__"}

# library -> the parts that may import it
ONLY_IN = {
    "torch": {"policies", "compiler", "hf", "engine", "harness", "testing", "search"},
    "transformers": {"hf"},
    "peft": {"hf"},
    "huggingface_hub": {"hf"},
    "gguf": {"hf"},
    "lightning": {"engine"},
    "lm_eval": {"harness"},
    "omegaconf": {"config"},
}
PURE = {"errors": set[str](), "policies": {"torch"}, "compiler": {"torch"}}  # besides the standard library


def imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(root: Path) -> list[str]:
    """Every import in the package at `root` that crosses a wall, as ``file:line: what``."""
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        part = inside.parts[0].removesuffix(".py")
        package = ("swaa", *inside.parts[:-1])
        for line, name in imports(ast.parse(path.read_text(encoding="utf-8")), package):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top == "swaa":
                crosses = part not in EVERYTHING and target not in MAY_IMPORT.get(part, set()) | {part}
            else:
                outside = part in PURE and top not in PURE[part] | set(sys.stdlib_module_names)
                crosses = outside or part not in ONLY_IN.get(top, {part})
            if crosses:
                found.append(f"{inside}:{line}: {part} must not import {name}")
    return found


def test_imports_point_one_way() -> None:
    assert violations(SRC) == []


def test_every_part_has_its_place_in_the_table() -> None:
    parts = {path.name.removesuffix(".py") for path in SRC.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__pycache__"} <= MAY_IMPORT.keys() | EVERYTHING


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "import torch"),
        ("errors.py", "import rich"),
        ("policies/base.py", "import numpy"),
        ("policies/base.py", "from swaa.compiler import dense"),
        ("policies/base.py", "from ..compiler import dense"),
        ("policies/base.py", "from .. import hf"),
        ("policies/base.py", "def f():\n    from swaa.hf.loading import load"),
        ("policies/base.py", "if TYPE_CHECKING:\n    import transformers"),
        ("compiler/cost.py", "import transformers.masking_utils"),
        ("hf/apply.py", "from swaa.engine import evaluate"),
        ("hf/apply.py", "import lightning"),
        ("engine/tune.py", "from peft import LoraConfig"),
        ("engine/tune.py", "from swaa import cli"),
        ("engine/suite.py", "import lm_eval"),
        ("harness/model.py", "from swaa.engine import run"),
        ("config.py", "import torch"),
        ("recipe.py", "from omegaconf import OmegaConf"),
        ("tasks/needle.py", "from transformers import AutoTokenizer"),
        ("tasks/needle.py", "import torch"),
        ("graders.py", "from swaa.hf import load"),
        ("report/table.py", "import torch"),
        ("report/table.py", "import swaa.engine.evaluate"),
        ("cli/main.py", "import torch"),
        ("newroom.py", "from swaa.policies import base"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "policies/base.py",
            "import torch, math\nfrom .selector import every\nfrom swaa.errors import invalid",
        ),
        ("hf/apply.py", "import transformers, peft, torch\nfrom swaa.compiler import dense"),
        ("engine/tune.py", "import lightning\nfrom swaa.hf.loading import load"),
        ("cli/main.py", "from swaa.engine import run\nimport argparse, rich"),
    ],
)
def test_what_is_allowed_is_not_caught(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []


def test_public_names_have_no_logic() -> None:
    """``swaa/__init__.py`` may import names, list them and load them lazily (PEP 562); nothing else."""
    body = ast.parse((SRC / "__init__.py").read_text(encoding="utf-8")).body
    lazy = {"__getattr__", "__dir__"}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            assert node.name in lazy, f"line {node.lineno}: {node.name} belongs in a module of its own"
        else:
            kinds = ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.Expr | ast.If
            assert isinstance(node, kinds), f"line {node.lineno}: {ast.unparse(node)[:60]}"


def test_no_file_outgrows_its_room() -> None:
    lengths = {path.relative_to(SRC): len(path.read_text("utf-8").splitlines()) for path in SRC.rglob("*.py")}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `statement`."""
    program = f"import sys\n{statement}\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HEAVY = {"transformers", "lightning", "peft", "omegaconf", "matplotlib"}


@pytest.mark.parametrize("module", ["swaa.policies", "swaa.compiler"])
def test_the_pure_parts_load_without_the_heavy_libraries(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert "swaa" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("module", ["swaa", "swaa.errors", "swaa.report", "swaa.graders"])
def test_what_knows_no_model_loads_no_torch(module: str) -> None:
    assert modules_after(f"import {module}") & (HEAVY | {"torch"}) == set()


def test_the_command_lines_help_loads_no_torch() -> None:
    program = "sys.argv = ['swaa', '--help']\nimport contextlib, io, swaa.cli\n"
    program += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): swaa.cli.main()"
    assert modules_after(program) & (HEAVY | {"torch"}) == set()
