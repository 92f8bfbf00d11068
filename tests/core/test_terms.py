"""An actor follows the newest controller that it has heard of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import StaleEpoch
from orchestrator.core.terms import Terms


@given(st.lists(st.integers(1, 5) | st.none()))
def test_what_is_older_than_anything_heard_is_refused_and_all_else_is_not(spoken: list[int | None]) -> None:
    terms, highest = Terms("m-decode-0"), 0
    for term in spoken:
        if term is not None and term < highest:
            with pytest.raises(StaleEpoch, match=f"m-decode-0: it follows the controller of term {highest}"):
                terms.heed(term)
        else:
            terms.heed(term)
            highest = max(highest, term or 0)


def test_the_refusal_is_typed() -> None:
    assert (StaleEpoch.code, StaleEpoch.http_status, StaleEpoch.grpc_code) == (
        "stale_epoch",
        409,
        "FAILED_PRECONDITION",
    )
