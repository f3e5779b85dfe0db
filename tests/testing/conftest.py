"""The plants, known by name while a test runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swaa.policies import registry


@pytest.fixture
def own_registry() -> Iterator[None]:
    """What is registered in the test is known to it alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_policies", dict(registry._policies))
        patch.setattr(registry, "_patterns", dict(registry._patterns))
        yield
