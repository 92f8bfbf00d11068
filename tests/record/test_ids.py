"""A request is found by whatever a person may have of it."""

from __future__ import annotations

import pytest

from orchestrator.record.ids import Match, match, names


@pytest.mark.parametrize(
    ("asked", "request_id", "client_id", "expected"),
    [
        ("chatcmpl-6f1", "chatcmpl-6f1-0a1b2c3d", "6f1", Match.WHOLE),  # the answer's id
        ("6f1", "chatcmpl-6f1-0a1b2c3d", "6f1", Match.WHOLE),  # x-request-id
        ("chatcmpl-6f1-0a1b2c3d", "chatcmpl-6f1-0a1b2c3d", "", Match.WHOLE),  # a span's
        ("chatcmpl-6f1-0a1b2c3d~d1", "chatcmpl-6f1-0a1b2c3d", "", Match.WHOLE),  # a worker's log's
        ("chatcmpl-6f1-0a1b2c3d~p0~r", "chatcmpl-6f1-0a1b2c3d", "", Match.WHOLE),
        ("chatcmpl-6f1", "1_chatcmpl-6f1-0a1b2c3d", "", Match.WHOLE),  # n > 1
        ("1_chatcmpl-6f1-0a1b2c3d", "1_chatcmpl-6f1-0a1b2c3d", "", Match.WHOLE),
        ("cmpl-6f1", "cmpl-6f1-0-0a1b2c3d", "", Match.WHOLE),  # the first prompt of a completion
        ("cmpl-6f1", "2_cmpl-6f1-11-0a1b2c3d", "", Match.WHOLE),
        ("embd-6f1", "embd-6f1-3-0a1b2c3d", "", Match.WHOLE),
        ("resp_6f1", "resp_6f1_0-0a1b2c3d", "", Match.WHOLE),
        ("job-7", "job-7-0a1b2c3d", "job-7", Match.WHOLE),  # a gRPC call's
        ("job", "job-7-0a1b2c3d", "job-7", Match.BEGINNING),
        ("chatcmpl-6", "chatcmpl-6f1-0a1b2c3d", "6f1", Match.BEGINNING),
        ("6", "chatcmpl-6f1-0a1b2c3d", "6f1", Match.BEGINNING),
        ("f1", "chatcmpl-6f1-0a1b2c3d", "6f1", Match.NONE),
        ("", "chatcmpl-6f1-0a1b2c3d", "6f1", Match.NONE),
        ("~p0", "chatcmpl-6f1-0a1b2c3d", "6f1", Match.NONE),
    ],
)
def test_names(asked: str, request_id: str, client_id: str, expected: Match) -> None:
    assert match(asked, names(request_id, client_id)) is expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("0_chatcmpl-6f1-0a1b2c3d", ""), ("1_chatcmpl-6f1-0a1b2c3d", "")),
        (("cmpl-6f1-0-0a1b2c3d", ""), ("cmpl-6f1-1-4e5f6a7b", "")),
        (("0_cmpl-6f1-0-0a1b2c3d", "6f1"), ("1_cmpl-6f1-1-4e5f6a7b", "6f1")),
    ],
)
def test_sequences_of_one_request_share_their_last_name(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert names(*one)[-1] == names(*other)[-1]


def test_requests_of_a_like_name_do_not() -> None:
    assert names("job-7-0a1b2c3d", "job-7")[-1] != names("job-8-4e5f6a7b", "job-8")[-1]
