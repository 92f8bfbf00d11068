"""How long a request may wait for a worker, by what requests like it take from there on."""

from __future__ import annotations

import pytest

from orchestrator.core.patience import AT_ONCE, Patience

SHORT, LONG = 100, 20_000


def mixed(target: float | None = 2.0) -> Patience:
    """Short prompts that take 0.1 s and long ones that take 1.9 s, in turn."""
    patience = Patience(30.0, target)
    for _ in range(50):
        patience.saw(0.1, SHORT)
        patience.saw(1.9, LONG)
    return patience


def test_what_long_prompts_take_is_no_reason_to_refuse_a_short_one() -> None:
    patience = mixed()
    assert patience.seconds(None, SHORT) == pytest.approx(1.9, abs=0.05)
    assert patience.seconds(None, LONG) == pytest.approx(0.1, abs=0.05)


def test_a_length_that_was_not_seen_is_judged_by_the_next_shorter_one_or_else_by_the_next_longer() -> None:
    patience = mixed()
    assert patience.seconds(None, 5_000) == patience.seconds(None, SHORT)
    assert patience.seconds(None, 1_000_000) == patience.seconds(None, LONG)
    assert patience.seconds(None, 1) == patience.seconds(None, SHORT)


def test_who_knocks_is_judged_by_the_quickest_that_there_is() -> None:
    assert mixed().seconds(None, 0) == mixed().seconds(None, SHORT)


def test_what_nothing_is_known_of_may_wait_for_all_of_its_target() -> None:
    assert Patience(30.0, 2.0).seconds(None, SHORT) == 2.0
    assert Patience(30.0).seconds(None, SHORT) == 30.0
    assert Patience(30.0, 2.0).seconds(0.5, SHORT) == 0.5


def test_where_the_target_cant_be_kept_somebody_still_is_in_line_for_the_next_seat() -> None:
    patience = Patience(30.0, 1.0)
    patience.saw(5.0, SHORT)
    assert patience.seconds(None, SHORT) == AT_ONCE


def test_another_target_keeps_what_was_learned() -> None:
    patience = mixed()
    patience.target = 1.0
    assert patience.seconds(None, SHORT) == pytest.approx(0.9, abs=0.05)
    patience.target = None
    assert patience.seconds(None, LONG) == 30.0
