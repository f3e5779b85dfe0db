"""Patterns: functions that compose policies, known by name as policies are."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import swaa
from swaa import AttentionPolicy, FullAttention, SinkTokens, SlidingWindow, UserError, parse_policy, register_pattern
from swaa.policies import get_pattern, load_plugin, pattern_names, policy_names, registry, zoo_entries


@pytest.fixture(autouse=True)
def copies_of_the_registry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_policies", dict(registry._policies))
        patch.setattr(registry, "_patterns", dict(registry._patterns))
        yield


def test_a_pattern_of_ones_own(tmp_path: Path) -> None:
    plugin = tmp_path / "halves.py"
    plugin.write_text(
        "import swaa\n"
        "@swaa.register_pattern(examples=((8,), (16, 2)))\n"
        "def Halves(size, parts=2):\n"
        '    """Windows on the first layers: comes to ``SlidingWindow(size)`` there (arXiv 2512.10411). More."""\n'
        "    return swaa.SlidingWindow(size).on_layers(slice(0, parts))\n",
        encoding="utf-8",
    )
    load_plugin(str(plugin))
    expected = SlidingWindow(8).on_layers("0:3")
    assert parse_policy("Halves(8, parts=3)") == expected
    assert parse_policy({"policy": "Halves", "size": 8, "parts": 3}) == expected
    assert parse_policy({"union": [{"policy": "Halves", "size": 8}, "SinkTokens(2)"]}) == SlidingWindow(8).on_layers(
        "0:2"
    ) | SinkTokens(2)
    assert repr(parse_policy("Halves(8)")) == "SlidingWindow(8).on_layers([0, 1])"
    assert "Halves" in pattern_names()
    assert "Halves" not in policy_names()
    assert get_pattern("Halves").examples() == (SlidingWindow(8).on_layers("0:2"), SlidingWindow(16).on_layers("0:2"))
    assert get_pattern("Halves")(8) == SlidingWindow(8).on_layers("0:2")

    entry = next(entry for entry in zoo_entries() if entry.name == "Halves")
    assert (entry.kind, entry.summary, entry.formula) == (
        "pattern",
        "Windows on the first layers",
        "SlidingWindow(size)",
    )
    assert entry.papers == ("2512.10411",)
    assert entry.parameters == (("size", None), ("parts", "2"))
    assert entry.signature == "Halves(size, parts=2)"
    assert [example.text for example in entry.examples] == ["Halves(8)", "Halves(16, 2)"]
    assert entry.examples[1].mapping == {"policy": "Halves", "size": 16, "parts": 2}


def _policy(size: int) -> AttentionPolicy:
    return SlidingWindow(size)


def _named(name: str) -> Any:
    def function(size: int) -> AttentionPolicy:
        return SlidingWindow(size)

    function.__name__ = function.__qualname__ = name
    return function


def _with_policy(policy: str) -> AttentionPolicy:
    return parse_policy(policy)


@pytest.mark.parametrize(
    ("function", "examples", "message"),
    [
        (SlidingWindow, ((8,),), "pattern: expected a function, got .*SlidingWindow.* Put @register_pattern"),
        (_with_policy, (("SlidingWindow(8)",),), "pattern _with_policy: a parameter is named 'policy', which in YAML"),
        (_policy, (), "pattern _policy: it has no examples. Give the arguments of one call at least."),
        (_policy, ((1, 2),), "pattern _policy: an example does not fit its parameters .too many positional"),
        (
            _named("SinkTokens"),
            ((8,),),
            "policy name 'SinkTokens' is taken by swaa.policies.zoo.sink_tokens.SinkTokens",
        ),
        (_named("AShape"), ((8,),), "policy name 'AShape' is taken by swaa.policies.zoo.a_shape.AShape; .* Rename one"),
    ],
    ids=[
        "a class",
        "a parameter named policy",
        "no example",
        "an example amiss",
        "a policy's name",
        "a pattern's name",
    ],
)
def test_what_is_no_pattern_is_refused(function: Any, examples: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        register_pattern(examples=examples)(function)


def test_a_policy_cannot_have_a_patterns_name() -> None:
    @dataclass(frozen=True, repr=False)
    class AShape(SlidingWindow):
        pass

    with pytest.raises(UserError, match="policy name 'AShape' is taken by swaa.policies.zoo.a_shape.AShape"):
        swaa.register_policy(AShape)


def test_unknown_names_suggest_patterns_too() -> None:
    with pytest.raises(UserError, match="unknown policy 'StreamingLM'. Did you mean 'StreamingLLM'?"):
        parse_policy("StreamingLM(4, 8)")
    with pytest.raises(UserError, match="unknown policy 'Ashape'. Did you mean 'AShape'?"):
        parse_policy({"policy": "Ashape", "num_sinks": 2})
    with pytest.raises(UserError, match="unknown key of policy AShape 'num_sink'. Did you mean 'num_sinks'?"):
        parse_policy({"policy": "AShape", "num_sink": 2, "window_size": 8})
    with pytest.raises(
        UserError, match="AShape.2.: missing a required argument: 'window_size'. Write AShape.num_sinks"
    ):
        parse_policy("AShape(2)")
    with pytest.raises(UserError, match="unknown pattern 'BigBirds'. Did you mean 'BigBird'?"):
        get_pattern("BigBirds")


def test_an_installed_package_brings_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "import swaa\n"
        "@swaa.register_pattern(examples=((8,),))\n"
        "def Theirs(size):\n"
        '    """A window."""\n'
        "    return swaa.SlidingWindow(size)\n",
        encoding="utf-8",
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[swaa.policies]\ntheirs = theirs:Theirs\n", encoding="utf-8")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import swaa; print(swaa.parse_policy('Theirs(8)'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("SlidingWindow(8)", "")


def test_what_patterns_come_to() -> None:
    streaming = SinkTokens(4) | SlidingWindow(8)
    assert swaa.StreamingLLM(4, 8) == swaa.LMInfinite(4, 8) == streaming
    assert swaa.StreamingLLM(0, 8) == SlidingWindow(8)
    assert swaa.AShape(4, 8) == streaming.in_phase("prefill")
    assert swaa.LazyLayers("::2", 4, 8) == streaming.on_layers("::2")
    assert swaa.WindowsByPhase(8, 8, 4) == streaming
    assert swaa.WindowPyramid(64, 8, 4) == swaa.WindowsByLayer((64, 45, 26, 8))
    assert swaa.WindowsByLayer((8, 8), 4) == streaming
    assert swaa.InterleavedLayers(8, 2, 4) == streaming.on_layers("::2")
    assert swaa.StreamingHeads(((0, 1), (), (3,)), 4, 8) == streaming.on_heads([0, 1]).on_layers(
        0, otherwise=streaming.on_heads(3).on_layers(2)
    )
    assert swaa.StreamingHeads((), 4, 8) == FullAttention()
    assert repr(swaa.Longformer(8, ())) == "SlidingWindow(8)"


def test_the_heads_of_a_large_model_are_composed_in_a_moment() -> None:
    """80 layers with heads of their own: index sets are combined many times over, and each once."""
    heads = tuple(tuple(head for head in range(64) if (head // 8 * 7 + layer * 5) % 3) for layer in range(80))
    start = time.process_time()
    policy = swaa.StreamingHeads(heads, 64, 256)
    assert parse_policy(swaa.policy_to_dict(policy)) == policy
    assert time.process_time() - start < 10


def test_big_bird_s_defaults_are_the_paper_s() -> None:
    """Two of its window's three blocks lie behind a query; two global blocks and three random ones."""
    assert parse_policy("BigBird(64)") == parse_policy(
        "BlockWindow(64, 2) | SinkTokens(128) | RandomBlocks(64, (0, 1, 2))"
    )
