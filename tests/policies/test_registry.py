"""Policies by name: refusals, and those of other people's installed packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from swaa import Index, Predicate, UserError, parse_policy, policy_to_dict, register_policy
from swaa.policies import policy_names, registry


@pytest.fixture(autouse=True)
def a_copy_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_policies", dict(registry._policies))


class _Blind(Predicate):
    def visible(self, q: Index, k: Index) -> Index:
        return q < k

    @classmethod
    def examples(cls) -> Sequence[_Blind]:
        return ()


def test_a_listing_names_the_policy_whose_examples_fail() -> None:
    @dataclass(frozen=True, repr=False)
    class Unlisted(_Blind):
        @classmethod
        def examples(cls) -> Sequence[_Blind]:
            raise KeyError("where")

    register_policy(Unlisted)
    with pytest.raises(UserError, match="policy Unlisted: its examples fail with KeyError: 'where'. Mend them."):
        registry.zoo_entries()


def test_a_name_is_given_once() -> None:
    @dataclass(frozen=True, repr=False)
    class SlidingWindow(_Blind):
        pass

    with pytest.raises(UserError) as told:
        register_policy(SlidingWindow)
    assert str(told.value) == (
        "policy name 'SlidingWindow' is taken by swaa.policies.zoo.sliding_window.SlidingWindow; "
        f"{__name__}.test_a_name_is_given_once.<locals>.SlidingWindow cannot have it too. Rename one of them."
    )


def test_a_module_loaded_again_may_register_its_class_again() -> None:
    for _ in range(2):

        @register_policy
        @dataclass(frozen=True, repr=False)
        class Again(_Blind):
            pass

    assert registry.get_policy("Again") is Again


@dataclass
class Thawed(_Blind):
    pass


@dataclass(frozen=True)
class Stranger:
    size: int = 1


@dataclass(frozen=True, repr=False)
class Nested(_Blind):
    policy: str = "SlidingWindow"


@dataclass(frozen=True, repr=False)
class Stacked(_Blind):
    stack: int = 3
    union: int = 4


def test_a_field_may_have_the_name_of_a_mappings_kind() -> None:
    register_policy(Stacked)
    assert parse_policy(policy_to_dict(Stacked(7))) == Stacked(7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Nested, "policy Nested: a field is named 'policy', which in YAML stands for the class. Rename the field."),
        (Thawed, "policy Thawed: expected a frozen dataclass, got .* Put @dataclass.frozen=True, repr=False. under"),
        (_Blind, "policy _Blind: expected a frozen dataclass"),
        (Stranger, "policy: expected a subclass of swaa.Predicate, got .*Stranger.* Derive the policy from"),
        (print, "policy: expected a subclass of swaa.Predicate, got <built-in"),
    ],
    ids=["a field named policy", "thawed", "no dataclass", "no predicate", "no class"],
)
def test_what_is_no_policy_is_refused(wrong: type, message: str) -> None:
    with pytest.raises(UserError, match=message):
        register_policy(wrong)  # type: ignore[type-var]


# ------------------------------------------------------------------------------------------- installed packages

EVEN_KEYS = '''
"""Somebody's own policies."""
from dataclasses import dataclass
import swaa

@swaa.register_policy
@dataclass(frozen=True, repr=False)
class EvenKeys(swaa.Predicate):
    step: int

    def visible(self, q, k):
        return k % self.step == 0

    @classmethod
    def examples(cls):
        return (cls(2),)
'''


def install(site: Path, module: str, entry_points: str) -> None:
    """What pip leaves behind of a package: the module, and its metadata."""
    (site / "their_policies.py").write_text(module, encoding="utf-8")
    info = site / "their_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-policies\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[swaa.policies]\n{entry_points}\n", encoding="utf-8")


def ask(site: Path, program: str) -> str:
    """What a fresh interpreter prints that has the package."""
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        f"import swaa\ntry:\n    {program}\nexcept swaa.UserError as e:\n    print('told:', e)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("target", ["their_policies:EvenKeys", "their_policies"], ids=["class", "module"])
def test_an_installed_package_plugs_in(tmp_path: Path, target: str) -> None:
    install(tmp_path, EVEN_KEYS, f"even = {target}")
    assert "'EvenKeys', " in ask(tmp_path, "print(swaa.policy_names())")
    parsed = ask(tmp_path, "print(swaa.parse_policy('EvenKeys(3) | SlidingWindow(8)'))")
    assert parsed == "SlidingWindow(8) | EvenKeys(3)"
    parsed = ask(tmp_path, "print(swaa.parse_policy({'policy': 'EvenKeys', 'step': 3}))")
    assert parsed == "EvenKeys(3)"
    assert "EvenKeys" not in policy_names()


@pytest.mark.parametrize(
    ("module", "target", "cause"),
    [
        ("", "missing_module:Policy", "ModuleNotFoundError: No module named 'missing_module'."),
        ("", "their_policies:Policy", "AttributeError: module 'their_policies' has no attribute 'Policy'."),
        ("1 / 0", "their_policies", "ZeroDivisionError: division by zero."),
        ("def", "their_policies", "SyntaxError: invalid syntax (their_policies.py, line 1)."),
        ("Policy = 8", "their_policies:Policy", "policy: expected a subclass of swaa.Predicate, got 8."),
        (
            EVEN_KEYS.replace("EvenKeys", "SinkTokens"),
            "their_policies",
            "policy name 'SinkTokens' is taken by swaa.policies.zoo.sink_tokens.SinkTokens;",
        ),
    ],
    ids=["no module", "no name", "fails", "syntax", "no policy", "duplicate"],
)
def test_a_package_that_cannot_be_loaded_is_named(tmp_path: Path, module: str, target: str, cause: str) -> None:
    install(tmp_path, module, f"even = {target}")
    told = ask(tmp_path, "swaa.policy_names()")
    assert told.startswith(f"told: entry point 'even' of their-policies cannot be loaded: {cause}")
    assert told.endswith("Mend or uninstall the package.")
    # the zoo's own names need no package
    assert ask(tmp_path, "print(swaa.policies.get_policy('SinkTokens')(4))") == "SinkTokens(4)"
