"""An engine that stands still is noticed, and one in a long step is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.hang import NEW_STEPS, NEW_TIMES, TIMES, Stillness
from orchestrator.core.spec import Device
from tests.core.support import FACTS

LEAST = 60.0
LARGE_ON_CPU = replace(FACTS, weight_bytes=16 << 30, max_model_len=32_768, kv_block_bytes=1 << 20)
LARGE_ON_GPU = replace(LARGE_ON_CPU, weight_bytes=140 << 30, device=Device.GPU)


def warm(facts: object = FACTS, least: float = LEAST) -> Stillness:
    """One that has made its first steps."""
    still = Stillness(facts, 8192, least)  # type: ignore[arg-type]
    for step in range(1, NEW_STEPS + 1):
        assert not still.looked(0.01, busy=True, steps=step)
    return still


def noticed_after(still: Stillness, steps: int = NEW_STEPS) -> float:
    seconds = 0.0
    while not still.looked(1.0, busy=True, steps=steps):
        seconds += 1.0
        assert seconds < 1e6
    return seconds


def test_requests_without_a_step_for_long_are_a_hang() -> None:
    assert noticed_after(warm()) == pytest.approx(LEAST, abs=1.0)
    assert noticed_after(warm(LARGE_ON_GPU)) < 5 * LEAST


def test_an_idle_engine_hangs_never_and_work_that_was_given_up_does_not_excuse_one() -> None:
    still = warm()
    assert not any(still.looked(1.0, busy=False, steps=NEW_STEPS) for _ in range(10_000))
    for _ in range(30):
        assert not still.looked(1.0, busy=True, steps=NEW_STEPS)
    for _ in range(1000):
        assert not still.looked(1.0, busy=False, steps=NEW_STEPS)
    assert noticed_after(still) < LEAST


def test_the_largest_step_that_a_slow_device_may_have_is_no_hang() -> None:
    """16 GiB of weights on a few cores: a batch of prompts takes minutes there."""
    still = warm(LARGE_ON_CPU)
    assert noticed_after(still) > 30 * LEAST


def test_an_engine_that_may_still_compile_has_longer() -> None:
    assert noticed_after(Stillness(FACTS, 8192, LEAST), 0) == pytest.approx(NEW_TIMES * LEAST, abs=1.0)


def test_nothing_is_a_hang_where_that_is_switched_off() -> None:
    still = warm(least=0.0)
    assert not any(still.looked(1.0, busy=True, steps=NEW_STEPS) for _ in range(100_000))


@given(st.lists(st.floats(0.1, LEAST), min_size=1, max_size=50))
def test_steps_as_long_as_the_longest_before_are_none(lengths: list[float]) -> None:
    still, steps, longest = warm(), NEW_STEPS, 0.0
    for length in lengths:
        assert not still.looked(length, busy=True, steps=steps)
        steps += 1
        assert not still.looked(0.1, busy=True, steps=steps)
        longest = max(longest, length)
    assert still.bound >= max(LEAST, TIMES * longest)
