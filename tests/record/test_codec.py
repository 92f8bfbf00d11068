"""What goes into a file comes out of it, whatever it is."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.decision import Decision
from orchestrator.core.errors import SegueError, WorkerLost
from orchestrator.core.types import Load, RequestReport, WorkerInfo
from orchestrator.record.codec import NotPlain, decode, encode
from tests.record.strategies import of, told

KINDS = [*get_args(m.Event), *get_args(m.Command), Decision, RequestReport, WorkerInfo, Load, SegueError]


def through_a_file(hint: Any, value: Any) -> Any:
    return decode(hint, json.loads(json.dumps(encode(hint, value), allow_nan=False)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_round_trip(kind: type) -> None:
    @given(value=of(kind))
    def check(value: Any) -> None:
        assert told(through_a_file(kind, value)) == told(value)

    check()


@given(value=of(m.Event), command=of(m.Command))
def test_round_trip_where_the_kind_is_open(value: Any, command: Any) -> None:
    assert told(through_a_file(m.Event, value)) == told(value)
    assert told(through_a_file(m.Command, command)) == told(command)


@given(st.floats())
def test_floats_come_back_to_the_bit(number: float) -> None:
    back = through_a_file(m.Arrived, m.Arrived("r", "m", 1, deadline=number)).deadline
    assert (
        math.isnan(back)
        if math.isnan(number)
        else (back, math.copysign(1, back))
        == (
            number,
            math.copysign(1, number),
        )
    )


def test_an_int_where_a_float_belongs_reads_the_same_after_a_replay() -> None:
    assert json.dumps(encode(SegueError, WorkerLost("x", retry_after=5))) == json.dumps(
        encode(SegueError, WorkerLost("x", retry_after=5.0))
    )


def test_what_says_nothing_takes_no_room() -> None:
    assert encode(m.Event, m.Arrived("r", "m", 7)) == {"Arrived": {"request_id": "r", "model": "m", "prompt_tokens": 7}}
    assert len(encode(m.Event, m.Arrived("r", "m", 7, blocks=range(1000)))["Arrived"]["blocks"]) < 11_000


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (m.Event, m.Forget("w")),
        (m.Command, object()),
        (m.CacheChanged, m.CacheChanged("w", stored=(-1,))),
        (m.CacheChanged, m.CacheChanged("w", stored=(1 << 64,))),
        (SegueError, type("Private", (SegueError,), {"code": "private"})("x")),
    ],
)
def test_what_cannot_be_written_is_refused(hint: Any, value: Any) -> None:
    with pytest.raises(NotPlain):
        encode(hint, value)


@pytest.mark.parametrize(
    "plain",
    [
        {"Arrived": {"request_id": "r"}},
        {"Arrived": {"request_id": "r", "model": "m", "prompt_tokens": 1, "mood": "good"}},
        {"Departed": {}},
        {"Refused": {"wire_id": "w", "refusal": "tired", "detail": ""}},
        {"CacheChanged": {"worker_id": "w", "stored": "no base64!"}},
        {},
        7,
    ],
)
def test_what_no_such_version_wrote_is_refused(plain: Any) -> None:
    with pytest.raises(NotPlain):
        decode(m.Event, plain)
