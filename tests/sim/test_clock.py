"""Things happen in the order (time, sequence): earlier first, and of two at the same time the one asked for first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sim.clock import Clock

# Within one slice of the clock, at its edges, and further apart than it has slices.
TIMES = st.lists(
    st.sampled_from([0.0, 0.0002, 0.00025, 0.0004, 0.5, 1.0, 1.0 + 2**-52, 2.0, 2.048, 2.0482, 9.0, 1e4]), max_size=30
)


@given(times=TIMES)
def test_earlier_first_and_at_the_same_time_in_the_order_asked_for(times: list[float]) -> None:
    clock, seen = Clock(), []
    for number, time in enumerate(times):
        clock.at(time, lambda n: seen.append((clock.now, n)), number)
    clock.run()
    assert seen == sorted((time, number) for number, time in enumerate(times))


@given(times=TIMES)
def test_what_an_action_asks_for_at_its_own_time_comes_after_all_that_waits_for_that_time(times: list[float]) -> None:
    clock, seen = Clock(), []

    def act(number: int) -> None:
        seen.append((clock.now, number))
        if number < len(times):
            clock.after(0.0, act, number + len(times))

    for number, time in enumerate(times):
        clock.at(time, act, number)
    clock.run()
    assert seen == sorted(
        [(time, number) for number, time in enumerate(times)]
        + [(time, number + len(times)) for number, time in enumerate(times)],
    )


@given(later=st.integers(8185, 8200))
def test_far_ahead_comes_after_near(later: int) -> None:
    clock, seen = Clock(), []

    def plan(_: object) -> None:
        clock.at(later / 4000.0, seen.append, "far")
        clock.at(1.0, seen.append, "near")

    clock.at(0.0, plan)
    clock.run()
    assert seen == ["near", "far"]


def test_actions_are_never_compared() -> None:
    clock, seen = Clock(), []
    for _ in range(3):
        clock.at(1.0, seen.append, object())
    clock.run()
    assert len(seen) == 3


def test_stop_ends_the_run_and_the_rest_waits() -> None:
    clock, seen = Clock(), []
    clock.at(1.0, clock.stop)
    clock.at(2.0, seen.append, "later")
    clock.run()
    assert (clock.now, seen) == (1.0, [])
    clock.run()
    assert (clock.now, seen) == (2.0, ["later"])


def test_an_action_that_fails_ends_the_run() -> None:
    clock = Clock()
    clock.at(1.0, lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clock.run()
