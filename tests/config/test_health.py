"""The section ``gateway.health``."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import config
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import HealthSpec

MODEL = {"name": "m", "source": "tiny:llama", "pools": {"serve": {"backend": "mock"}}}


def health(**section: Any) -> HealthSpec:
    document = {"cluster": {"name": "c"}, "gateway": {"health": section}, "models": [MODEL]}
    return config.parse(document, "test").gateway.health


def test_what_is_not_written_has_its_default_and_it_is_on() -> None:
    assert health() == HealthSpec()
    assert HealthSpec().enabled


def test_all_of_it_is_read() -> None:
    found = health(enabled=False, slow=4, failing=0.5, most_out=0, backoff_initial=2, backoff_max=90)
    assert found == HealthSpec(False, 4.0, 0.5, 0.0, 2.0, 90.0)


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"slow": 1}, "slow"),
        ({"failing": 0}, "failing"),
        ({"most_out": 1}, "most_out"),
        ({"most_out": True}, "most_out"),
        ({"enabled": "yes"}, "enabled"),
        ({"backoff_max": 1}, "backoff_max"),
        ({"slwo": 3}, "health"),
    ],
)
def test_what_is_wrong_is_refused_at_its_place(section: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        health(**section)
    assert place in str(caught.value)
