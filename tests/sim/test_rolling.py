"""What is hashed number by number has the hash of a tuple of all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sim.rolling import Rolling

NUMBERS = st.lists(
    st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 2) | st.floats(allow_nan=False), max_size=40
)


@given(first=NUMBERS, second=NUMBERS)
def test_a_tuple_that_is_never_made_has_its_hash(first: list[float], second: list[float]) -> None:
    rolling = Rolling()
    for numbers in (first, second):
        for number in numbers:
            rolling.add(hash(number))
        assert rolling.count == len(numbers)
        assert rolling.take() == hash(tuple(numbers))
