"""That the checker finds what is wrong, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from tests.chaos.checker import DEADLINE_SLACK, Window, wrong_with
from tests.chaos.transcript import DONE, Ask, Attempt, Transcript, quiet, recorded

ASK = Ask(1, (1, 2, 3), 4)


def answered(ask: Ask = ASK, **over: object) -> Transcript:
    tokens = ask.expected()
    attempt = Attempt(began=10.0, tokens={0: tokens}, finished={0: ["length"]}, ends=[DONE], ended=11.0)
    return Transcript(ask, [replace(attempt, **over)])  # type: ignore[arg-type]


def test_an_answer_as_it_would_have_been_is_right() -> None:
    assert wrong_with(answered()) == []


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"tokens": {0: [*ASK.expected()[:2], 0, *ASK.expected()[3:]]}}, "other tokens"),
        ({"tokens": {0: ASK.expected()[:3]}}, "finished after 3 of 4"),
        ({"tokens": {0: [*ASK.expected(), 7]}}, "other tokens"),
        ({"finished": {0: ["length", "length"]}}, "finished 2 times"),
        ({"finished": {}}, "never finished"),
        ({"finished": {0: ["stop"]}}, "not length"),
        ({"ends": []}, "0 outcomes"),
        ({"ends": [DONE, DONE]}, "2 outcomes"),
        ({"ends": ["internal"]}, "ended with internal"),
        ({"ends": ["deadline_exceeded"]}, "had not set"),
        ({"late": 1}, "after the end"),
        ({"broke_at": 10.5}, "no gateway was lost"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_broken_promise_is_found(over: dict[str, object], said: str) -> None:
    assert any(said in each for each in wrong_with(answered(**over)))


def test_a_deadline_runs_on_but_not_while_its_gateway_is_stopped() -> None:
    late = answered(replace(ASK, deadline=0.05), ends=["deadline_exceeded"], ended=10.05 + DEADLINE_SLACK + 1.0)
    assert any("outlived" in each for each in wrong_with(late))
    assert any("outlived" in each for each in wrong_with(late, stops=[Window(5.0, 10.5)]))
    assert wrong_with(late, stops=[Window(11.0, 13.0)]) == []


RECORDED = {0: [5, 6, 7, 8], 1: [9, 6, 5, 8]}


def held_to(ask: Ask, ends: str = DONE) -> Ask:
    answer = Attempt(began=0.0, tokens=RECORDED, finished={0: ["length"], 1: ["length"]}, ends=[ends])
    return recorded(ask, Transcript(quiet(ask), [answer]), Random(1))


def test_sequences_are_each_held_to_what_they_were_in_quiet() -> None:
    ask = held_to(replace(ASK, n=2))
    ends = {0: ["length"], 1: ["length"]}
    assert wrong_with(answered(ask, tokens=RECORDED, finished=ends)) == []
    swapped = {0: RECORDED[1], 1: RECORDED[0]}
    assert sum("other tokens" in each for each in wrong_with(answered(ask, tokens=swapped, finished=ends))) == 2


def test_a_stop_token_cuts_off_only_sequences_that_have_it() -> None:
    ask = replace(held_to(replace(ASK, n=2)), stop_token=7)
    cut = {0: [5, 6, 7], 1: RECORDED[1]}
    assert wrong_with(answered(ask, tokens=cut, finished={0: ["stop"], 1: ["length"]})) == []
    assert wrong_with(answered(ask, tokens=RECORDED, finished={0: ["length"], 1: ["length"]}))


def test_what_is_asked_in_quiet_is_whole_and_leaves_nothing_to_chance() -> None:
    ask = replace(ASK, n=2, stop_token=7, cancel_after=1, deadline=0.1)
    assert quiet(ask) == Ask(1, ASK.prompt, ASK.max_tokens, n=2, seed=1)
    assert held_to(ask).stop_token in RECORDED[0]
    with pytest.raises(ValueError, match="in quiet"):
        held_to(ask, ends="worker_lost")
