"""What users get wrong, and what they are told: values, names, and text that is no policy."""

from __future__ import annotations

import pytest

from strategies import OF_TESTS
from swaa import SinkTokens, SlidingWindow, UserError, parse_policy, policy_to_dict
from swaa.policies import get_policy

BIG = 2**31


@pytest.mark.parametrize("value", [0, -3, 2.5, "8", True, None, [8]], ids=repr)
@pytest.mark.parametrize(("kind", "field"), [(SlidingWindow, "window_size"), (SinkTokens, "num_tokens")])
def test_sizes(kind: type, field: str, value: object) -> None:
    name = kind.__name__
    message = f"{name}.{field}: expected an int >= 1 (tokens), got {value!r}. Write for example {name}(1)."
    with pytest.raises(UserError) as told:
        kind(value)
    assert str(told.value) == message
    with pytest.raises(UserError) as told:
        parse_policy({"policy": name, field: value})
    assert str(told.value).startswith(f"{name}.{field}: expected an int >= 1 (tokens), got ")


def test_the_mend_names_the_field_where_there_are_several() -> None:
    with pytest.raises(
        UserError, match=r"^DilatedWindow.dilation: expected an int >= 1 .*Write for example dilation=1\.$"
    ):
        parse_policy("DilatedWindow(8, 0)")


def test_sizes_beyond_the_kernels_index_type() -> None:
    assert SlidingWindow(BIG - 1).window_size == BIG - 1
    with pytest.raises(
        UserError, match=f"SlidingWindow.window_size: expected an int from 1 to {BIG - 1} .tokens., got"
    ):
        SlidingWindow(BIG)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SlidingWindow(0)", "SlidingWindow.window_size: expected an int >= 1 .tokens., got 0"),
        ("SlidingWindow(-3)", "got -3"),
        ("SlidingWindow(2.5)", "got 2.5"),
        ("SlidingWindow('8')", "got '8'"),
        ("SlidingWindow(True)", "got True"),
        ("SlidingWindo(8)", "unknown policy 'SlidingWindo'. Did you mean 'SlidingWindow'. Known: .*FullAttention"),
        ("slidingwindow(8)", "Did you mean 'SlidingWindow'"),
        ("Sinks", "unknown policy 'Sinks'.* If it is in a file of yours, name the file: --plugin FILE, or plugins: "),
        ("SlidingWindow", "policy: expected a policy, got 'SlidingWindow'. Give its values: SlidingWindow.….."),
        (
            "SlidingWindow()",
            r"SlidingWindow\(\): missing a required argument: 'window_size'. Write SlidingWindow.window_size",
        ),
        (
            "SlidingWindow(1, 2)",
            r"SlidingWindow\(1, 2\): too many positional arguments. Write SlidingWindow.window_size",
        ),
        (
            "SlidingWindow(size=8)",
            r"SlidingWindow\(size=8\): missing .* 'window_size'. Write SlidingWindow.window_size",
        ),
        (
            "SlidingWindow(8).in_phase('prefil')",
            "phase: expected 'prefill' or 'decode', got 'prefil'. Leave the phase out",
        ),
        ("SlidingWindow(8).in_phase()", "in_phase.*missing a required argument: 'phase'"),
        ("SlidingWindow(8).on_layer(3)", "unknown method 'on_layer'. Did you mean 'on_layers'"),
        ("SlidingWindow(8).on_layers('1:x')", "layers: expected an int, a slice"),
        ("SlidingWindow(8).on_layers([0], others=SinkTokens(1))", "on_layers.*others"),
        (
            "SlidingWindow(8) + SinkTokens(4)",
            r"policy: expected a policy expression, got 'SlidingWindow\(8\) \+ Sink.* Use policy",
        ),
        ("SlidingWindow(8) | 4", "policy: expected a policy, got 4. Operators and scopes act on policies."),
        ("SlidingWindow(8) or SinkTokens(4)", "Use policy names, | & ~"),
        ("~8", "policy: expected a policy, got 8"),
        ("SlidingWindow(8", r"policy: expected a policy expression, got .* \(.* column 14\)"),
        ("", "policy: expected a policy expression, got ''"),
        ("8", "policy: expected a policy expression, got '8'. Call a policy by name, such as SlidingWindow.128."),
        ("every(2)", "Call a policy by name"),
        ("stack(SlidingWindow(8))", "Wrap each policy: stack.rule.SlidingWindow.8..."),
        ("SlidingWindow(8) if 1 else 2", "Use policy names"),
        ("SlidingWindow(**{'window_size': 8})", "expected a policy expression"),
        ("SlidingWindow(*[8])", "expected a policy expression"),
        ("SlidingWindow(8, **8)", r"SlidingWindow\(8, \*\*=8\): "),
        ("~" * 30_000 + "SlidingWindow(8)", "policy: expected a policy expression, got '~~~"),
        ("(" * 900 + "SlidingWindow(8)" + ")" * 900, "policy: expected a policy expression"),
        ("~" * 15_000 + "SlidingWindow(8)", "policy: expected a policy expression"),
        ("SlidingWindow(8)\x00", "policy: expected a policy expression"),
    ],
    ids=lambda value: value[:40],
)
def test_text_that_is_no_policy(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        parse_policy(text)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('false')",
        "eval('1')",
        "SlidingWindow.__init__",
        "SlidingWindow(8).__class__",
        "SlidingWindow(8).__class__.__mro__[1].__subclasses__()",
        "SlidingWindow(8).normal_form",
        "SlidingWindow(8).__reduce__()",
        "(lambda: SlidingWindow(8))()",
        "[SlidingWindow(8) for _ in range(9)][0]",
        "SlidingWindow(__import__('os').getpid())",
        "SlidingWindow(2 ** 9)",
        "SlidingWindow(f'{8}')",
        "SlidingWindow((x := 8))",
        "open('/etc/passwd')",
        "policy_names()",
        "get_policy('SlidingWindow')(8)",
        "select('::2').sampled(print)",
        "SlidingWindow(8); import os",
        "import os",
    ],
)
def test_text_is_read_and_never_run(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*_: object) -> None:
        raise AssertionError("the text was executed")

    monkeypatch.setattr("os.system", called)
    monkeypatch.setattr("os.getpid", called)
    monkeypatch.setattr("builtins.eval", called)
    monkeypatch.setattr("builtins.open", called)
    with pytest.raises(UserError):
        parse_policy(text)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (8, "policy: expected an expression or a mapping, got 8. Write an expression such as"),
        (None, "policy: expected an expression or a mapping, got None"),
        ({}, "policy: expected a mapping of one kind, got 'nothing'. Use exactly one of policy, union"),
        ({"polcy": "SlidingWindow"}, "expected a mapping of one kind, got 'polcy'"),
        ({"union": [], "stack": []}, "got 'union, stack'"),
        ({"policy": "SlidingWindow"}, "SlidingWindow.*window_size"),
        ({"policy": "SlidingWindw", "window_size": 8}, "unknown policy 'SlidingWindw'. Did you mean 'SlidingWindow'"),
        (
            {"policy": "SlidingWindow", "windowsize": 8},
            "unknown key of policy SlidingWindow 'windowsize'. Did you mean 'window_size'",
        ),
        ({"union": []}, "policy.union: expected a list, got ... Write one policy a line"),
        ({"union": "SlidingWindow(8)"}, "policy.union: expected a list"),
        ({"union": ["SlidingWindow(8)"], "layers": 3}, "unknown key beside 'union' 'layers'"),
        ({"scope": "SlidingWindow(8)"}, "policy.scope: expected a place"),
        ({"scope": "SlidingWindow(8)", "layer": 3}, "unknown key beside 'scope' 'layer'. Did you mean 'layers'"),
        (
            {"scope": "SlidingWindow(8)", "layers": 3, "phase": "decode", "otherwise": "SinkTokens(4)"},
            "policy.scope: expected a place, got .'layers', 'phase'.. Give one of",
        ),
        ({"scope": "SlidingWindow(8)", "phase": "decoding"}, "phase: expected 'prefill' or 'decode', got 'decoding'"),
        ({"stack": ["SlidingWindow(8)"]}, "policy.stack: expected a list of rules"),
        ({"stack": [{"rule": "SlidingWindow(8)", "layer": 3}]}, "unknown key of a rule 'layer'. Did you mean 'layers'"),
        ({"stack": [{"rule": "SlidingWindow(8)", "layers": 3}]}, "End with a rule without layers, phase and heads"),
        (
            {"complement": {"policy": "Sinktokens", "num_tokens": 3}},
            "unknown policy 'Sinktokens'. Did you mean 'SinkTokens'",
        ),
    ],
    ids=repr,
)
def test_mappings_that_are_no_policy(spec: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_policy(spec)  # type: ignore[arg-type]


def test_a_predicate_is_known_by_name_only_once_it_is_registered() -> None:
    policy = OF_TESTS[0](3)
    assert policy_to_dict(policy) == {"policy": "Chunked", "size": 3}
    with pytest.raises(UserError, match="unknown policy 'Chunked'"):
        parse_policy(policy_to_dict(policy))
    with pytest.raises(UserError, match="unknown policy 'Chunked'"):
        get_policy("Chunked")
