"""Answers that were given under a policy's former code are not mixed with those under its present one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from swaa import ALiBi, SinkTokens, SlidingWindow
from swaa.config import load_experiment
from swaa.engine import run_experiment
from swaa.engine.own_code import own_code
from swaa.errors import UserError
from swaa.policies import registry
from swaa.recipe import Recipe

CODE = '''"""A plugin."""
from dataclasses import dataclass
import swaa

class Base(swaa.Predicate):
    """What it has in common."""
    def visible(self, q, k):
        return q - k < self.reach

@swaa.register_policy
@dataclass(frozen=True, repr=False)
class Own(Base):
    """A window."""
    reach: int

    def __post_init__(self):
        self.require_int("reach", at_least=1)

    @classmethod
    def examples(cls):
        return (cls(3),)
'''
TALK = CODE.replace("A window.", "A window, in\n    other words.").replace(
    "return (cls(3),)", "return (  # so\n            cls(3),)"
)
OTHER = CODE.replace("q - k < self.reach", "q - k <= self.reach")


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_policies", dict(registry._policies))


def forget() -> None:
    """As a new process would: the plugin is imported anew."""
    registry._policies.pop("Own", None)
    for name in [name for name in sys.modules if name.startswith("swaa_plugin_own_")]:
        del sys.modules[name]


def module(path: Path, code: str) -> ModuleType:
    """The code as a module of its own file."""
    path.write_text(code)
    forget()
    spec = importlib.util.spec_from_file_location(f"swaa_plugin_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_what_counts_as_another_code(tmp_path: Path) -> None:
    digests = []
    for name, code in {"a": CODE, "b": TALK, "c": OTHER}.items():
        policy = module(tmp_path / f"{name}.py", code).Own(3)
        recipes = [Recipe("own", (policy | SinkTokens(1)).in_phase("prefill")), Recipe("none", SlidingWindow(3))]
        digests.append(own_code(recipes))
    assert [list(digest) for digest in digests] == [["Own"]] * 3
    assert digests[0] == digests[1] != digests[2]


def test_what_belongs_to_swaa_has_a_version_and_no_digest() -> None:
    assert own_code([Recipe("known", SlidingWindow(3), scores=ALiBi())]) == {}


def test_a_run_does_not_go_on_under_other_code(experiment_file: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"

    def run(code: str, *overrides: str, fresh: bool = False) -> None:
        plugin.write_text(code)
        forget()
        few = [f"plugins=[{plugin}]", "num_examples=1", "lengths=[400]", "tasks=[{name: needle_single}]"]
        recipes = "recipes=[{name: FA, policy: FullAttention()}, {name: own, policy: Own(9)}]"
        run_experiment(load_experiment(experiment_file, [*few, recipes, *overrides]), fresh=fresh)

    run(CODE)
    run(TALK)
    run(OTHER, "recipes=[{name: FA, policy: FullAttention()}]")  # does not ask for it
    with pytest.raises(UserError, match=r"(?s)Own: the code of this class has changed\n.*--fresh"):
        run(OTHER)
    run(OTHER, fresh=True)
    described = json.loads((load_experiment(experiment_file).output / "run.json").read_text())
    assert list(described["code"]) == ["Own"]
