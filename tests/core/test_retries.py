"""Retries stay a share of what arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.retries import RetryBudget


@given(st.lists(st.booleans(), max_size=400))
def test_retries_are_bounded_by_the_burst_and_a_share_of_arrivals(arrivals: list[bool]) -> None:
    budget = RetryBudget(ratio=0.2, burst=5)
    spent = arrived = 0
    for is_arrival in arrivals:
        if is_arrival:
            budget.arrived()
            arrived += 1
        else:
            spent += budget.spend()
        assert spent <= 5 + 0.2 * arrived + 1e-9
        assert 0.0 <= budget.left <= 5
