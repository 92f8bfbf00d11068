"""What is left of a batch, and what its output is: whatever was done before, and wherever a crash tore the journal."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli import batch_lines, batch_pace
from orchestrator.cli.batch_lines import Progress, Task
from orchestrator.cli.batch_pace import Pace
from orchestrator.core.errors import ConfigError


def asked(custom_id: object = "a", **over: object) -> dict[str, Any]:
    body = {"model": "m", "prompt": "Say é \u2028 \ud800"}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body, **over}


def written(*lines: object) -> list[bytes]:
    return [json.dumps(line).encode() + b"\n" for line in lines]


def survey(source: list[bytes], model: str | None = None) -> Task:
    return batch_lines.survey(source, model)


def split(text: bytes) -> list[bytes]:
    return text.splitlines(keepends=True)


@given(
    count=st.integers(1, 30),
    blank=st.sets(st.integers(0, 29)),
    seed=st.integers(),
    tears=st.lists(st.integers(0, 200), min_size=1, max_size=4),
)
def test_however_often_it_is_torn_the_output_is_whole_and_in_order_and_nothing_acknowledged_is_done_again(
    count: int, blank: set[int], seed: int, tears: list[int]
) -> None:
    rng = Random(seed)
    source = []
    for number in range(count):
        source += written(asked(f"id-{number}")) + ([b"\n"] if number in blank else [])
    task, journal, kept = survey(source), b"", set[int]()
    sent: list[int] = []
    for tear in [*tears, None]:
        progress = batch_lines.recover(split(journal), task, None)
        assert kept <= set(progress.done)
        journal = journal[: progress.end] or batch_lines.header(task, None)
        left = batch_lines.left(task, progress)
        assert {line.number for line in left}.isdisjoint(progress.done)
        rng.shuffle(left)
        unsure = b""
        for line in left[: None if tear is None else tear % (len(left) + 1)]:
            sent.append(line.number)
            journal += batch_lines.entry(line.number, batch_lines.answered(task, line, 200, "r", {"n": line.number}))
            kept.add(line.number)
        if tear is not None and len(kept) < count:  # one that was never acknowledged, torn anywhere
            line = next(line for line in task.lines if line.number not in kept)
            unsure = batch_lines.entry(line.number, batch_lines.answered(task, line, 200, "r", {}))
            journal += unsure[: tear % len(unsure)]
    progress = batch_lines.recover(split(journal), task, None)
    output = [
        json.loads(line) for line in batch_lines.in_order(task, progress, lambda at, size: journal[at : at + size])
    ]
    assert [line["custom_id"] for line in output] == [f"id-{number}" for number in range(count)]
    assert [line["response"]["body"]["n"] for line in output] == [line.number for line in task.lines]
    assert len(sent) == len(set(sent)) == count


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 10_000))
def test_a_journal_that_is_damaged_is_believed_up_to_there(garbage: list[bytes], at: int) -> None:
    task = survey(written(*(asked(str(number)) for number in range(5))))
    whole = batch_lines.header(task, None)
    for line in task.lines:
        whole += batch_lines.entry(line.number, batch_lines.answered(task, line, 200, "r", {}))
    at %= len(whole)
    damaged = whole[:at] + b"".join(garbage)
    progress = batch_lines.recover(split(damaged), task, None)
    assert whole[: progress.end] == damaged[: progress.end]
    assert progress.end >= at - max(len(line) for line in split(whole))
    for offset, size in progress.done.values():
        json.loads(damaged[offset : offset + size])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (json.dumps(asked("")).encode(), "custom_id"),
        (json.dumps(asked(7)).encode(), "custom_id"),
        (json.dumps(asked(method="GET")).encode(), "POST"),
        (json.dumps(asked(url="/v1/models")).encode(), "url has to be one of /v1/chat/completions"),
        (json.dumps(asked(url=["/v1/completions"])).encode(), "url has to be one of"),
        (json.dumps(asked(body="x")).encode(), "body"),
        (json.dumps(asked(body={"model": "m", "stream": True})).encode(), "stream"),
        (json.dumps(asked(body={"prompt": "x"})).encode(), "no --model"),
    ],
)
def test_a_line_that_can_not_be_sent_has_an_error_of_its_own(line: bytes, fault: str) -> None:
    task = survey([line + b"\n", *written(asked("good"))])
    bad, good = task.lines
    assert (fault in bad.fault, good.fault) == (True, "")
    output = batch_lines.refused(task, bad)
    assert (output["error"]["code"], output["response"]) == ("invalid_line", None)
    assert "line 1: " in output["error"]["message"]


def test_the_model_that_is_told_goes_before_the_line_s_own() -> None:
    raw = written(asked(body={"model": "gpt", "prompt": "x"}), asked("b", body={"prompt": "y"}))
    assert {line.model for line in survey(raw, "mine").lines} == {"mine"}
    assert json.loads(batch_lines.order(raw[0], "mine")[1])["model"] == "mine"
    assert json.loads(batch_lines.order(raw[0], None)[1])["model"] == "gpt"


def test_equal_ids_an_empty_file_and_another_input_or_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="lines 1 and 3 have the same custom_id 'a'"):
        survey(written(asked("a"), asked("b"), asked("a", method="GET")))
    with pytest.raises(ConfigError, match="no lines"):
        survey([b"\n", b"  \n"])
    task = survey(written(asked("a")))
    journal = [batch_lines.header(task, "m")]
    assert batch_lines.recover(journal, task, "m") == Progress(end=len(journal[0]))
    with pytest.raises(ConfigError, match="INPUT: it is not the file"):
        batch_lines.recover(journal, survey(written(asked("b"))), "m")
    with pytest.raises(ConfigError, match="--model: this output was begun with m"):
        batch_lines.recover(journal, task, "other")


@given(st.integers(1, 500), st.lists(st.one_of(st.just(None), st.floats(0, 5)), max_size=400))
def test_the_pace_stays_within_its_bounds_and_comes_back(most: int, events: list[float | None]) -> None:
    pace, now = Pace(most), 0.0
    for event in events:
        if event is None:
            pace.answered()
        else:
            now += event
            before = pace.limit
            pace.refused(now)
            assert pace.limit in (before, max(1, before // 2))
        assert 1 <= pace.limit <= most
    for _ in range(most * most + 1):
        pace.answered()
        if pace.limit == most:
            break
    assert pace.limit == most


@given(st.integers(1, 100), st.sampled_from([0, 408, 429, 503]), st.none() | st.floats(0, 1e6), st.floats(0, 1))
def test_what_was_refused_comes_back_no_sooner_than_told(
    attempt: int, status: int, after: float | None, chance: float
) -> None:
    seconds = batch_pace.pause(status, attempt, after, chance)
    assert seconds is not None
    assert min(after or 0.0, 30.0) <= seconds <= 30.0


def test_what_stands_and_what_is_tried_again() -> None:
    assert [batch_pace.pause(status, 1, None, 0.5) for status in (200, 400, 404, 413)] == [None] * 4
    assert [batch_pace.pause(500, attempt, None, 0.5) is None for attempt in (1, 2, 3, 4)] == [
        False,
        False,
        False,
        True,
    ]
