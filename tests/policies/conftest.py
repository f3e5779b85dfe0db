"""The tests' own predicates, known by name while a module of these tests runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from strategies import OF_TESTS
from swaa.policies import register_policy, registry


@pytest.fixture(scope="module")
def predicates_of_tests() -> Iterator[None]:
    """Registered in a copy of the registry, which the others never see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_policies", dict(registry._policies))
        for kind in OF_TESTS:
            register_policy(kind)
        yield
