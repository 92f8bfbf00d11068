"""Predictions that are wrong for long are said once, with the likely cause, and once more when they are right again."""

from __future__ import annotations

import pytest

from orchestrator.core.decision import CachedBy
from orchestrator.core.messages import Alert
from orchestrator.core.prediction import KIND, WARM_UP, Predictions


def alerts(predictions: Predictions, times: int, predicted: int, actual: int, by: CachedBy) -> list[Alert]:
    return [alert for _ in range(times) for alert in predictions.saw("m", predicted, actual, 1000, by)]


def test_good_predictions_are_silent() -> None:
    predictions = Predictions()
    assert alerts(predictions, 500, 512, 512, CachedBy.EVENTS) == []
    assert predictions.accuracy["m"].error == 0.0


@pytest.mark.parametrize(
    ("predicted", "actual", "by", "cause"),
    [
        (0, 900, CachedBy.EVENTS, "block size"),
        (900, 0, CachedBy.EVENTS, "salt"),
        (900, 0, CachedBy.ROUTED, "no KV events"),
    ],
)
def test_sustained_error_is_said_once_with_its_cause_and_its_end_once(
    predicted: int, actual: int, by: CachedBy, cause: str
) -> None:
    predictions = Predictions()
    (alert,) = alerts(predictions, 500, predicted, actual, by)
    assert (alert.kind, alert.model, alert.over) == (KIND, "m", False)
    assert cause in alert.text
    (over,) = alerts(predictions, 500, 800, 800, by)
    assert over.over


def test_a_few_errors_are_weather() -> None:
    predictions = Predictions()
    assert alerts(predictions, WARM_UP - 1, 0, 900, CachedBy.EVENTS) == []
    predictions = Predictions()
    alerts(predictions, 200, 900, 900, CachedBy.EVENTS)
    assert alerts(predictions, 5, 0, 900, CachedBy.EVENTS) == []


def test_prompts_without_hashes_say_nothing() -> None:
    predictions = Predictions()
    assert alerts(predictions, 500, 0, 900, CachedBy.UNKNOWN) == []
    assert not predictions.accuracy
