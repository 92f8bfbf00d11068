"""What people are told of a request is what happened to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.decision import Wait
from orchestrator.core.spec import Role
from orchestrator.core.types import Load
from orchestrator.record.codec import decode
from orchestrator.record.journal import Journal
from orchestrator.record.lookup import look_up
from orchestrator.record.recording import BadRecording, Recording
from orchestrator.record.stories import Found, Stories, merged
from orchestrator.record.story import RequestStory, What
from tests.core.support import worker
from tests.record.gateway import Gateway, message
from tests.record.strategies import of
from tests.record.world import an_hour


def found(path: Path, asked: str) -> Found:
    with Recording(path) as recording:
        return look_up(recording, asked)


def whats(story: RequestStory) -> list[str]:
    return [moment.what for moment in story.moments]


def test_a_request_that_went_well(tmp_path: Path) -> None:
    an_hour(tmp_path / "r")
    (story,) = found(tmp_path / "r", "one").stories
    assert (story.request_id, story.client_id, story.gateway) == ("chatcmpl-one-0a1b2c3d", "one", "gw-0")
    assert (story.prompt_tokens, story.blocks, story.tenant, story.priority, story.output_limit) == (40, 2, "t", -1, 9)
    assert story.arrived == 1_700_000_002.0
    assert whats(story) == [
        What.ARRIVED,
        What.PREFILL_SENT,
        What.PREFILL_ENDED,
        What.DECODE_SENT,
        What.FIRST_TOKEN,
        What.DECODE_ENDED,
        What.ENDED,
    ]
    _, sent, prefilled, decoding, first, _, _ = story.moments
    assert sent.decision is not None
    assert sent.decision.on_prefill is not None
    assert sent.decision.on_prefill.worker_id == sent.worker
    assert (prefilled.seconds, prefilled.worker, prefilled.cached_tokens) == (0.5, sent.worker, 16)
    assert (decoding.worker, first.worker, first.transferred_tokens) == ("d0", "d0", 24)
    assert sent.wire_id in decoding.detail
    assert story.outcome is not None
    assert (story.outcome.outcome, story.outcome.output_tokens) == ("finished", 5)


def test_a_request_whose_worker_was_lost_and_whose_client_left(tmp_path: Path) -> None:
    an_hour(tmp_path / "r")
    (story,) = found(tmp_path / "r", "chatcmpl-two").stories
    assert whats(story) == ["arrived", "prefill sent", "worker lost", "prefill sent", "cancelled", "aborted", "ended"]
    lost, again = story.moments[2:4]
    assert (lost.worker, lost.detail) == (story.moments[1].worker, "its process died")
    assert again.worker != lost.worker
    assert story.deadline_seconds == 57.0


def test_a_request_without_an_end_is_told_as_far_as_it_got(tmp_path: Path) -> None:
    an_hour(tmp_path / "r")
    (story,) = found(tmp_path / "r", "chatcmpl-tow-0c1d2e3f~p1").stories
    assert whats(story) == ["arrived", "prefill sent"]
    assert story.outcome is None


def test_an_ambiguous_beginning_lists_the_requests(tmp_path: Path) -> None:
    an_hour(tmp_path / "r")
    assert found(tmp_path / "r", "chatcmpl-t") == Found("gw-0", ambiguous=("two", "chatcmpl-tow"))
    assert found(tmp_path / "r", "chatcmpl-tw").stories[0].client_id == "two"
    assert found(tmp_path / "r", "nobody") == Found("gw-0")


def test_a_recording_of_another_version_is_told_so(tmp_path: Path) -> None:
    an_hour(tmp_path / "r")
    text = (tmp_path / "r").read_text()
    (tmp_path / "r").write_text(text.replace('{"End"', '{"Fin"'))
    with pytest.raises(BadRecording, match=r"Fin.*written by Segue 0\.1\.0"):
        found(tmp_path / "r", "one")


def test_why_a_request_waits_is_told_while_it_waits_and_after(tmp_path: Path) -> None:
    gateway = Gateway()
    gateway.step(m.Arrived("first", "m", 8), 1.0)
    gateway.step(m.Arrived("second", "m", 8), 1.0)
    assert gateway.find("first").stories[0].waits is Wait.NO_WORKER
    assert gateway.find("second").stories[0].waits is Wait.OTHERS_FIRST
    gateway.step(m.WorkerUp(worker("s0", Role.SERVE)), 2.0)
    for name, why in (("first", Wait.NO_WORKER), ("second", Wait.OTHERS_FIRST)):
        assert gateway.find(name).stories[0].waits is None
        gateway.step(m.DecodeEnded(f"{name}~d1", 1), 3.0)
        (story,) = gateway.find(name).stories
        assert story.outcome is not None
        assert (story.outcome.waited, story.outcome.queue_seconds) == (why, 1.0)


def test_memory_has_a_bound_in_requests_and_in_moments() -> None:
    journal = Journal()
    stories = journal.stories = Stories(kept=3)
    gateway = Gateway("s0", journal=journal)
    gateway.step(m.Arrived("stays", "m", 8), 0.5)
    for n in range(10):
        gateway.finish(f"r-{n}")
    assert [bool(stories.find(f"r-{n}").stories) for n in range(10)] == [False] * 7 + [True] * 3
    assert stories.find("stays").stories  # what is under way is never forgotten
    for n in range(100):
        gateway.step(m.Refused(f"stays~d{n + 1}", m.Refusal.BUSY, "full"), 1.0 + n)
        gateway.step(m.LoadReported("s0", Load(), 0), 1.5 + n)
    (story,) = stories.find("stays").stories
    assert len(story.moments) + story.left_out == 202
    assert len(story.moments) == 64
    assert (story.moments[0].what, story.moments[-1].seconds) == ("arrived", 100.0)


def test_a_request_that_a_full_worker_turned_away_ends_like_any_other() -> None:
    gateway = Gateway("s0")
    gateway.step(m.Arrived("r", "m", 8), 1.0)
    gateway.step(m.Refused("r~d1", m.Refusal.BUSY, "full"), 1.5)
    gateway.step(m.LoadReported("s0", Load(), 0), 2.0)
    gateway.step(m.DecodeEnded("r~d2", 1), 3.0)
    (story,) = gateway.find("r").stories
    assert whats(story) == ["arrived", "decode sent", "refused", "decode sent", "decode ended", "ended"]
    assert not gateway.journal.stories._wires


def test_nothing_is_kept_of_requests_that_are_over_but_their_story() -> None:
    gateway = Gateway("s0")
    gateway.journal.known_as("r", "outside")
    gateway.finish("r")
    stories = gateway.journal.stories
    assert not stories._wires
    assert not stories._live
    assert not stories._names
    assert not stories._ended["r"].arrival.blocks


def test_what_gateways_know_is_put_together() -> None:
    one, two = Gateway("s0"), Gateway("s0")
    one.finish("chatcmpl-aa-00000000")
    two.finish("chatcmpl-ab-00000000")
    two.finish("chatcmpl-ac-00000000")

    def ask(asked: str) -> Found:
        return merged(asked, [one.find(asked), two.find(asked)])

    assert [story.request_id for story in ask("chatcmpl-ab").stories] == ["chatcmpl-ab-00000000"]
    assert set(ask("chatcmpl-").ambiguous) == {"chatcmpl-aa", "chatcmpl-ab", "chatcmpl-ac"}
    assert ask("x") == Found("")
    one.finish("chatcmpl-a-00000000")  # a whole id is preferred to longer ones that begin so, wherever they are
    assert [story.request_id for story in ask("chatcmpl-a").stories] == ["chatcmpl-a-00000000"]


@given(of(RequestStory, int=st.integers(0, 2**32 - 1)))
def test_a_story_survives_the_way_over_grpc(story: RequestStory) -> None:
    plain = json_format.MessageToDict(
        message(story), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert decode(RequestStory, plain) == story
