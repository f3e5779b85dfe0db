"""Planted defects: each is caught, by the check that should, in words that name it; and what is healthy passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

import swaa
from swaa.compiler import dense, kernel, spans
from swaa.compiler.layout import TokenLayout
from swaa.policies import bound
from swaa.testing import CheckReport, Failure, check_policy
from swaa.testing.blame import author_line
from testing import planted


def failure(report: CheckReport, check: str) -> Failure:
    """What the check of that name found."""
    found = {outcome.check: outcome.failure for outcome in report.outcomes}[check]
    assert found is not None, str(report)
    return found


def checked(policy: object, *only: str, **options: Any) -> CheckReport:
    return check_policy(policy, flex=False, only=only, **options)


@pytest.mark.parametrize(
    ("policy", "check", "defect"),
    [
        (planted.OffByOne, "conventions", "window off by one"),
        (planted.SlotsAsSinks, "readable", "slots taken for positions"),
        (planted.FloatIndex, "readable", "float index"),
        (planted.Branch, "readable", "data-dependent branch"),
        (planted.BranchOnOne, "readable", "data-dependent branch"),
        (planted.Counting, "purity", "state shared between calls"),
        (planted.Remembering, "purity", "state shared between calls"),
        (planted.NarrowVerdict, "verdicts sound", "unsound verdict"),
        (planted.NarrowVerdict, "retention", "unsound verdict"),
        (planted.PhaseFlipped, "phase scopes", "phase flipped"),
        (planted.HeadIgnored, "head scopes", "head ignored"),
        (planted.LayerIgnored, "layer scopes", "layer ignored"),
        (planted.OtherwiseForgotten, "otherwise", "wrong otherwise"),
        (planted.OtherwiseNothing, "phase scopes", "wrong otherwise"),
        (planted.Raising, "readable", "an error in the policy"),
        (planted.ANumber, "readable", "no predicate"),
        (planted.AnotherShape, "readable", "no predicate"),
        (planted.AConstant, "readable", "no predicate"),
        (planted.Itself, "value", "no value"),
        (planted.AllAlike, "value", "no value"),
        (planted.Wildcard, "value", "no value"),
        (planted.Listed, "value", "no value"),
        (planted.ImpliesItsKind, "implications", "a wrong implication"),
        (planted.ImpliesOneTooMany, "implications", "a wrong implication"),
        (planted.ImpliesANarrowerWindow, "implications", "a wrong implication"),
        (planted.ImpliesNothingAtAll, "implications", "a wrong implication"),
        (planted.EvenKeys, "implications", "a wrong implication"),
        (planted.OtherwiseFarAway, "far positions", "another mask"),
        (planted.NarrowFarAway, "far positions", "unsound verdict"),
        (planted.Overflowing, "verdicts sound", "overflow"),
    ],
)
def test_a_defect_of_the_policy_is_named(policy: type[swaa.Predicate], check: str, defect: str) -> None:
    assert failure(checked(policy, "value", "readable", "purity", check), check).defect == defect


def test_a_wrong_implication_is_told_with_the_pair_that_a_union_would_lose() -> None:
    found = failure(checked(planted.ImpliesOneTooMany, "implications"), "implications")
    assert found.what == (
        "ImpliesOneTooMany(3).implies(ImpliesOneTooMany(2)) is True, but query 2 sees key 0 by the first and not by "
        "the second: their union would be simplified to the second, and lose it"
    )
    assert found.tokens == 3
    assert found.picture.splitlines()[3].split() == ["███··", "-██··"]
    assert "subclass" in failure(checked(planted.EvenKeys, "implications"), "implications").mend


@pytest.mark.parametrize("policy", [planted.OwnRepr, planted.Derived, planted.Replaced])
def test_what_is_registered_has_to_be_stored_and_read_back(policy: type[swaa.Predicate], own_registry: None) -> None:
    swaa.register_policy(policy)
    assert failure(checked(policy, "round trip"), "round trip").defect == "no value"


def test_a_namesake_of_a_registered_class_is_not_registered() -> None:
    namesake = type("SinkTokens", (planted.Healthy,), {})
    report = checked(namesake, "round trip", "generate()")
    assert [outcome.status for outcome in report.outcomes] == ["skipped", "skipped"]
    assert "not registered" in report.outcomes[0].detail


@pytest.mark.parametrize(
    ("file", "is_the_authors"),
    [
        ("/home/me/my_policy.py", True),
        ("/venv/lib/python3.11/site-packages/lunar_policies/__init__.py", True),
        ("/venv/lib/python3.11/site-packages/torch/_tensor.py", False),
        ("/venv/lib/python3.11/site-packages/transformers/models/llama/modeling_llama.py", False),
        (json.__file__, False),
        ("<string>", False),
        (dense.__file__, False),
        (swaa.SlidingWindow.visible.__code__.co_filename, True),
    ],
)
def test_errors_are_laid_at_the_right_door(file: str, is_the_authors: bool) -> None:
    error = None
    try:
        exec(compile("raise ValueError", file, "exec"))
    except ValueError as raised:
        error = raised.with_traceback(raised.__traceback__ and raised.__traceback__.tb_next)
    assert error is not None
    assert bool(author_line(error)) is is_the_authors


@pytest.mark.parametrize("policy", [planted.Share, planted.Spans, planted.Hashing])
def test_odd_policies_are_not_accused(policy: type[swaa.Predicate], own_registry: None) -> None:
    swaa.register_policy(policy)
    cheap = (
        "value",
        "readable",
        "purity",
        "conventions",
        "implications",
        "verdicts exact",
        "far positions",
        "round trip",
    )
    report = checked(policy, *cheap, "padding", "retention")
    assert report, str(report)
    warnings = {outcome.check for outcome in report.outcomes if outcome.status == "warning"}
    assert warnings == ({"verdicts exact"} if policy is planted.Hashing else set())


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (planted.Raises, r"Raises.examples\(\): fails with TypeError: .* \(planted.py:\d+: return \(cls\(\),\)"),
        (planted.NoExamples, r"NoExamples.examples\(\): expected at least one instance"),
        (planted.Plain, "policy Plain: expected a frozen dataclass"),
    ],
)
def test_what_has_no_examples_is_refused(policy: type[swaa.Predicate], message: str) -> None:
    with pytest.raises(swaa.UserError, match=message):
        check_policy(policy)


def test_the_healthy_twin_passes() -> None:
    report = checked(planted.Healthy, oracle=lambda policy, q, k: k in range(q - policy.window_size + 1, q + 1))
    assert report, str(report)
    assert {outcome.check for outcome in report.outcomes if outcome.status == "skipped"} == {
        *("FlexAttention", "round trip", "generate()")  # it is not registered
    }


def test_only_an_oracle_knows_what_was_meant() -> None:
    def oracle(policy: Any, q: int, k: int) -> bool:
        return k in range(q - policy.reach + 1, q + 1)

    assert checked(planted.OffByOneUnnamed)
    found = failure(checked(planted.OffByOneUnnamed, "oracle", oracle=oracle), "oracle")
    assert found.defect == "window off by one: it is one token too long (at distance 3)"
    assert found.tokens == 4
    assert "OffByOneUnnamed(3): query 3, key 0 is seen, and the oracle says it should not be" in found.what
    assert found.picture.splitlines()[-1].split() == ["···███", "··+███"]


def test_the_author_s_line_is_told() -> None:
    found = failure(checked(planted.Raising, "readable"), "readable")
    assert "AttributeError: 'Raising' object has no attribute 'window_sise'" in found.what
    assert "planted.py:" in found.what
    assert "return q - k < self.window_sise" in found.what
    found = failure(checked(planted.FloatIndex, "readable"), "readable")
    assert "it uses / on positions" in found.what
    assert "planted.py:" in found.what


def test_a_failure_shows_the_smallest_shape_and_both_masks() -> None:
    found = failure(checked(planted.HeadIgnored, "head scopes"), "head scopes")
    assert found.tokens == 4
    assert "First at query 3, key 0 (layer 0, head 1, decode): the key is not seen and should be" in found.what
    assert "(HeadIgnored(3)).on_heads(0), dense mask" in found.what
    assert found.picture.splitlines()[-1].split() == ["████", "-███"]


# ------------------------------------------------------------------------------------ a library that is broken


def test_a_kernel_without_causality_is_a_future_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    mask_mod = kernel.mask_mod

    def without_causality(layer: Any, layout: TokenLayout) -> Callable[..., torch.Tensor]:
        visible = mask_mod(layer, layout)
        last = layout.query_length - 1
        return lambda b, h, q, k: visible(b, h, torch.maximum(q, k).clamp(max=last), torch.minimum(q, k))

    monkeypatch.setattr("swaa.compiler.mask_mod", without_causality)
    found = failure(checked(swaa.SlidingWindow(3), "kernel mask"), "kernel mask")
    assert found.defect == "future leak"
    assert found.tokens == 2
    assert "query 0, key 1" in found.what


def test_attention_that_sees_the_future_is_a_future_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = dense.dense_mask

    def leaking(layer: Any, layout: TokenLayout) -> torch.Tensor:
        mask = masks(layer, layout).clone()
        mask[..., 5:6, 7:8] = True
        return mask

    monkeypatch.setattr("swaa.compiler.program.dense_mask", leaking)
    report = checked(swaa.SlidingWindow(3), "causality", "SDPA dense")
    assert failure(report, "causality").defect == "future leak"
    assert failure(report, "SDPA dense").defect == "future leak"


def test_phases_flipped_by_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dense, kernel, spans):
        honest = module.evaluate_phases

        def flipped(prefill: Any, decode: Any, q: Any, k: Any, decodes: Any, honest: Any = honest) -> Any:
            return honest(prefill, decode, q, k, decodes if decode is None else ~decodes)

        monkeypatch.setattr(module, "evaluate_phases", flipped)
    report = checked(swaa.SlidingWindow(3), "phase scopes")
    assert failure(report, "phase scopes").defect == "phase flipped"
    assert "swap" in failure(report, "phase scopes").mend.lower()


def test_slots_taken_for_positions_by_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TokenLayout.padded.__func__  # type: ignore[attr-defined]

    def by_slot(cls: Any, real: torch.Tensor, **options: Any) -> TokenLayout:
        layout = honest(cls, torch.ones_like(real), **options)
        slots = layout.query_positions_BQ.masked_fill(~real, -1)
        return TokenLayout(slots, slots, layout.query_decodes_BQ)

    monkeypatch.setattr(TokenLayout, "padded", classmethod(by_slot))
    report = checked(swaa.SinkTokens(2), "dense mask", "packing", "padding")
    assert failure(report, "padding").defect == "padding as sink (slots taken for positions)"
    assert not {"dense mask", "packing"} & {outcome.check for outcome in report.outcomes if outcome.failure}


def test_padding_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = dense.dense_mask

    def seeing(layer: Any, layout: TokenLayout) -> torch.Tensor:
        return honest(layer, layout) | ((layout.key_positions_BK < 0)[:, None, None] & (layout.batch_size > 1))

    monkeypatch.setattr("swaa.compiler.dense_mask", seeing)
    assert failure(checked(swaa.SinkTokens(2), "padding"), "padding").defect == "padding is seen"


def test_documents_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = dense.dense_mask

    def mixed(layer: Any, layout: TokenLayout) -> torch.Tensor:
        return honest(layer, TokenLayout(layout.query_positions_BQ, layout.key_positions_BK, layout.query_decodes_BQ))

    monkeypatch.setattr("swaa.compiler.dense_mask", mixed)
    assert failure(checked(swaa.SlidingWindow(3), "packing"), "packing").defect == "documents mixed"


def test_heads_ignored_by_the_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bound._by_head

    def ignoring(split: Any, num_heads: int) -> Any:
        return dict.fromkeys(range(num_heads), honest(split, num_heads)[0])

    monkeypatch.setattr(bound, "_by_head", ignoring)
    bound.bind.cache_clear()
    try:
        assert failure(checked(swaa.SlidingWindow(3), "head scopes"), "head scopes").defect == "head ignored"
    finally:
        bound.bind.cache_clear()


def test_a_cache_that_drops_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from swaa.testing import masks

    honest = masks.live_keys

    def forgetful(layer: Any, keys: torch.Tensor, *rest: Any) -> torch.Tensor:
        return honest(layer, keys, *rest) & (keys != 1).unsqueeze(1)

    monkeypatch.setattr(masks, "live_keys", forgetful)
    found = failure(checked(swaa.SlidingWindow(3), "retention"), "retention")
    assert found.defect == "unsound verdict"
    assert "key 1 is taken for dead and dropped from the cache, and query 2 sees it" in found.what
