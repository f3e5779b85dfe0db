from __future__ import annotations

import pytest

from swaa.config.perplexity import Perplexity
from swaa.errors import UserError

GOOD = {"num_stretches": 3, "length": 100, "short_length": 20}


def test_settings_come_from_a_mapping_and_go_back() -> None:
    settings = Perplexity.from_dict({**GOOD, "key_gain": 1, "text_file": "mine.txt"})
    assert settings == Perplexity(3, 100, 20, text_file="mine.txt", key_gain=1.0, key_nll=2.0)
    assert Perplexity.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(("short_length", "stride"), [(1, 1), (7, 1), (8, 2), (20, 5), (4096, 1024)])
def test_a_short_context_is_shared_by_a_quarter_of_its_length(short_length: int, stride: int) -> None:
    assert Perplexity(1, 9_999, short_length).stride == stride


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_stretches": 0}, "perplexity.num_stretches: expected an int >= 1, got 0"),
        ({"length": "100"}, "perplexity.length: expected an int >= 1, got '100'"),
        ({"short_length": 0}, "perplexity.short_length: expected an int >= 1, got 0"),
        (
            {"short_length": 100},
            "perplexity.short_length: expected a context that is shorter than the stretch: length >= 127 for this one, "
            "got 100. Lower it, or raise length (100).",
        ),
        ({"short_length": 80}, "length >= 102 for this one, got 80"),
        ({"key_gain": -1}, r"perplexity.key_gain: expected a number in \[0, 100\], got -1"),
        ({"key_nll": 0}, r"perplexity.key_nll: expected a number in \(0, 100\], got 0"),
        ({"key_nll": "2"}, r"perplexity.key_nll: .* got '2'. Write a number without quotes"),
        ({"text_file": " "}, "perplexity.text_file: expected a non-empty string, got ' '"),
        ({"text_fil": "a"}, "unknown field 'perplexity.text_fil'. Did you mean 'perplexity.text_file'"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(100)", r"\(100\)")):
        Perplexity.from_dict({**GOOD, **changes})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UserError, match="perplexity.short_length: this field is missing"):
        Perplexity.from_dict({"num_stretches": 3, "length": 100})


def test_the_shortest_stretch_has_tokens_to_compare_with_a_bos_and_without() -> None:
    settings = Perplexity(1, 102, 80)
    for lead in (0, 1):
        assert settings.length - lead - settings.short_length > settings.stride
