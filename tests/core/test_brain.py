"""The brain's promises, one situation at a time; ``test_any_order`` has those over any order of events."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.core.defects import InvalidTransition
from orchestrator.core.errors import ClusterFull, DeadlineExceeded, NotReady, Overloaded, WorkerLost
from orchestrator.core.session import Session, Signal
from orchestrator.core.spec import GatewaySpec, ModelSpec, PrefillPlace, Role, RoutingSpec, SloSpec
from orchestrator.core.types import Load, WorkerInfo
from tests.core.support import worker

LEAST_LOAD_APART = RoutingSpec(policy="least_load", prefill=PrefillPlace.APART)


def brain_with(
    *workers: WorkerInfo,
    queue_seconds: float = 30.0,
    routing: RoutingSpec = LEAST_LOAD_APART,
    slo: SloSpec | None = None,
) -> Brain:
    models = [ModelSpec(name, "tiny:llama", {}, routing=routing, slo=slo) for name in ("m", "n")]
    brain = Brain(Random(0), GatewaySpec(queue_seconds=queue_seconds), models)
    for info in workers:
        assert brain.step(m.WorkerUp(info), 0.0) == []
    return brain


APART = (worker("p0", Role.PREFILL), worker("d0", Role.DECODE))


def kinds(commands: list[m.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def started(commands: list[m.Command], kind: type) -> m.StartPrefill | m.StartDecode:
    (command,) = [c for c in commands if isinstance(c, kind)]
    return command


class TestOneRequest:
    def test_goes_through_both_halves_and_reports_where(self) -> None:
        brain = brain_with(*APART)
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0), m.StartDecode)
        assert (prefill.worker_id, decode.worker_id, decode.collect) == ("p0", "d0", prefill.wire_id)
        assert brain.step(m.FirstToken(decode.wire_id, 0, 40), 2.5) == []
        (end,) = brain.step(m.DecodeEnded(decode.wire_id, 7), 4.0)
        assert isinstance(end, m.End)
        assert end.error is None
        report = end.report
        assert (report.outcome, report.prefill_worker, report.decode_worker) == ("finished", "p0", "d0")
        assert (report.ttft_seconds, report.prefill_seconds, report.transfer_seconds) == (1.5, 1.0, 0.5)
        assert report.kv_bytes == 3 * 1000  # 40 tokens are three blocks of 16
        brain.check()

    def test_one_pool_serves_both_halves_in_place(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE))
        decode = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartDecode)
        assert decode.collect is None

    def test_prompt_that_must_be_local_is_not_prefilled_apart(self) -> None:
        brain = brain_with(*APART)
        assert kinds(brain.step(m.Arrived("r", "m", 40, local_only=True), 1.0)) == ["StartDecode"]

    def test_waits_for_a_worker_of_its_own_model(self) -> None:
        brain = brain_with(worker("other", Role.SERVE, model="n"))
        assert brain.step(m.Arrived("r", "m", 40), 1.0) == []
        assert kinds(brain.step(m.WorkerUp(worker("s0", Role.SERVE)), 2.0)) == ["StartDecode"]

    def test_wait_has_a_bound_and_a_typed_end(self) -> None:
        brain = brain_with(queue_seconds=5.0)
        brain.step(m.Arrived("r", "m", 40), 1.0)
        assert brain.step(m.Tick(), 5.9) == []
        (end,) = brain.step(m.Tick(), 6.0)
        assert isinstance(end, m.End)
        assert isinstance(end.error, NotReady)
        assert end.report.outcome == "rejected"

    def test_while_there_is_no_worker_no_target_cuts_the_wait_short(self) -> None:
        brain = brain_with(queue_seconds=30.0, slo=SloSpec(ttft_ms=2000.0))
        brain.step(m.Arrived("a", "m", 40), 1.0)
        brain.step(m.Arrived("b", "m", 40), 1.5)
        assert brain.step(m.Tick(), 30.9) == []
        first, second = brain.step(m.Tick(), 31.0) + brain.step(m.Tick(), 31.5)
        assert (type(first.error), type(second.error)) == (NotReady, NotReady)

    def test_who_waits_when_the_last_worker_is_lost_waits_for_its_successor(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), slo=SloSpec(ttft_ms=2000.0))
        brain.step(m.LoadReported("s0", Load(waiting=1000)), 1.0)
        assert brain.step(m.Arrived("r", "m", 40), 1.0) == []
        brain.step(m.WorkerDown("s0", "it died"), 1.5)
        assert brain.step(m.Tick(), 1.6) + brain.step(m.Tick(), 3.5) == []
        assert kinds(brain.step(m.WorkerUp(worker("s0", Role.SERVE)), 20.0)) == ["StartDecode"]

    def test_who_is_told_that_workers_were_full_is_told_for_how_long(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), slo=SloSpec(ttft_ms=2000.0))
        for at in (1.0, 3.0):
            brain.step(m.LoadReported("s0", Load(waiting=1000)), at)
            brain.step(m.Arrived(f"r{at}", "m", 40), at)
        (end,) = brain.step(m.Tick(), 3.0)
        assert isinstance(end.error, ClusterFull)
        assert "were full for 2 s" in end.error.what

    def test_deadline_ends_it_wherever_it_is(self) -> None:
        brain = brain_with(*APART)
        brain.step(m.Arrived("r", "m", 40, deadline=3.0), 1.0)
        commands = brain.step(m.Tick(), 3.0)
        assert kinds(commands) == ["Abort", "End"]
        assert isinstance(commands[-1].error, DeadlineExceeded)

    def test_far_deadlines_of_what_has_ended_cost_no_memory(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE))
        for number in range(10_000):
            at = number * 0.01
            decode = started(brain.step(m.Arrived(f"r{number}", "m", 40, deadline=at + 86_400), at), m.StartDecode)
            brain.step(m.DecodeEnded(decode.wire_id, 1), at)
            brain.step(m.LoadReported("s0", Load(), own=0), at)
        assert len(brain._sessions._deadlines) < 5_000
        brain.step(m.LoadReported("s0", Load(), own=0), 150.0)
        brain.step(m.Arrived("last", "m", 40, deadline=200.0), 150.0)
        assert kinds(brain.step(m.Tick(), 200.0)) == ["Abort", "End"]

    def test_who_gives_up_waiting_takes_nobodys_turn(self) -> None:
        brain = brain_with(*(worker(f"s{n}", Role.SERVE) for n in range(4)), routing=RoutingSpec("round_robin"))
        went = [started(brain.step(m.Arrived("a", "m", 40), 0.0), m.StartDecode).worker_id]
        brain.step(m.Arrived("late", "m", 40), 5.0)  # nobody was heard of for long
        brain.fleet.get("s1").heard_at = 35.0  # there is room at the very moment when it gives up
        (end,) = brain.step(m.Tick(), 35.0)
        assert isinstance(end.error, NotReady)
        for n in range(4):
            brain.step(m.LoadReported(f"s{n}", Load(), 0), 35.0)
        went.append(started(brain.step(m.Arrived("b", "m", 40), 35.0), m.StartDecode).worker_id)
        assert went == ["s0", "s1"]

    def test_far_deadline_does_not_stretch_the_wait_for_a_worker(self) -> None:
        brain = brain_with(queue_seconds=5.0)
        brain.step(m.Arrived("r", "m", 40, deadline=600.0), 1.0)
        (end,) = brain.step(m.Tick(), 6.0)
        assert isinstance(end, m.End)
        assert isinstance(end.error, NotReady)

    def test_cancel_between_the_halves_releases_what_the_prefill_left(self) -> None:
        brain = brain_with(*APART)
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        assert kinds(brain.step(m.Cancelled("r"), 1.5)) == ["Abort", "End"]
        # The abort crossed the prefill's last output: its blocks are pinned and nobody will come for them.
        assert brain.step(m.PrefillEnded(prefill.wire_id, True), 1.6) == [m.Release(prefill.wire_id, "d0")]

    def test_stop_string_is_a_good_end(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE))
        decode = started(brain.step(m.Arrived("r", "m", 4), 1.0), m.StartDecode)
        brain.step(m.FirstToken(decode.wire_id, 0, 0), 1.1)
        commands = brain.step(m.Cancelled("r", output_tokens=5, complete=True), 1.2)
        assert kinds(commands) == ["Abort", "End"]
        assert (commands[-1].report.outcome, commands[-1].report.output_tokens) == ("finished", 5)


class TestLoss:
    def test_prefill_worker_lost_goes_to_another(self) -> None:
        brain = brain_with(*APART, worker("p1", Role.PREFILL))
        first = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        second = started(brain.step(m.WorkerDown(first.worker_id, "gone"), 2.0), m.StartPrefill)
        assert {first.worker_id, second.worker_id} == {"p0", "p1"}
        assert first.wire_id != second.wire_id
        brain.check()

    def test_no_prefill_worker_left_means_in_place(self) -> None:
        brain = brain_with(*APART)
        brain.step(m.Arrived("r", "m", 40), 1.0)
        decode = started(brain.step(m.WorkerDown("p0", "gone"), 2.0), m.StartDecode)
        assert decode.collect is None
        assert "no prefill worker takes requests" in decode.decision.reasons

    def test_last_attempt_computes_the_prompt_where_it_decodes(self) -> None:
        brain = brain_with(*APART)
        commands = brain.step(m.Arrived("r", "m", 40), 1.0)
        for attempt in (1, 2):
            prefill = started(commands, m.StartPrefill)
            commands = brain.step(m.PrefillEnded(prefill.wire_id, False, "broken"), 1.0 + attempt)
        assert kinds(commands) == ["StartDecode"]

    def test_reserved_decode_worker_lost_is_replaced_at_the_hand_over(self) -> None:
        brain = brain_with(*APART)
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        brain.step(m.WorkerDown("d0", "gone"), 1.5)
        brain.step(m.WorkerUp(worker("d1", Role.DECODE)), 1.6)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0), m.StartDecode)
        assert (decode.worker_id, decode.collect) == ("d1", prefill.wire_id)
        brain.check()

    def test_reserved_decode_worker_that_drains_is_replaced_at_the_hand_over(self) -> None:
        brain = brain_with(*APART)
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        brain.step(m.WorkerUp(worker("d1", Role.DECODE)), 1.4)
        brain.step(m.WorkerDraining("d0"), 1.5)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0), m.StartDecode)
        assert (decode.worker_id, decode.collect) == ("d1", prefill.wire_id)
        assert not brain.fleet.get("d0").claims
        brain.check()

    def test_what_no_other_decode_worker_has_room_for_is_released_at_the_hand_over(self) -> None:
        """The reserved one drains, the other is full: the KV is nobody's, but somebody is there to say so."""
        brain = brain_with(*APART)
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        brain.step(m.WorkerUp(worker("d1", Role.DECODE)), 1.4)
        brain.step(m.LoadReported("d1", Load(running=20), own=0), 1.4)
        brain.step(m.WorkerDraining("d0"), 1.5)
        assert kinds(brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0)) == ["Release"]
        assert brain.live == 1
        brain.check()

    def test_decode_lost_before_a_token_starts_again(self) -> None:
        brain = brain_with(*APART, worker("d1", Role.DECODE))
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0), m.StartDecode)
        commands = brain.step(m.WorkerDown(decode.worker_id, "gone"), 2.1)
        assert kinds(commands) == ["Release", "StartPrefill"]

    def test_decode_that_waits_for_the_kv_of_a_lost_prefill_worker_is_taken_back_within_a_second(self) -> None:
        brain = brain_with(*APART)
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0), m.StartDecode)
        assert brain.step(m.WorkerDown("p0", "nothing heard"), 7.0) == []
        brain.step(m.LoadReported("d0", Load(waiting=1)), 7.3)
        assert brain.step(m.Tick(), 7.4) == []  # its first token may be on its way
        commands = [command for at in (7.5, 7.6, 7.9) for command in brain.step(m.Tick(), at)]
        assert kinds(commands) == ["Abort", "StartDecode"]
        again = started(commands, m.StartDecode)
        assert (commands[0].wire_id, again.collect) == (decode.wire_id, None)
        brain.check()

    @pytest.mark.parametrize("how", ["first token", "the worker is back", "no retry is left"])
    def test_decode_that_waits_for_nothing_lost_is_left_alone(self, how: str) -> None:
        brain = brain_with(*APART)
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0), m.StartDecode)
        brain.step(m.WorkerDown("p0", "a link that blinked"), 7.0)
        if how == "first token":
            brain.step(m.FirstToken(decode.wire_id, 0, 40), 7.1)
        elif how == "the worker is back":
            brain.step(m.WorkerUp(worker("p0", Role.PREFILL)), 7.2)
        else:
            brain._sessions._retries.left = 0.5
        assert [command for at in (7.5, 8.0, 9.0) for command in brain.step(m.Tick(), at)] == []
        (end,) = brain.step(m.DecodeEnded(decode.wire_id, 5), 9.5)
        assert end.report.outcome == "finished"
        brain.check()

    def test_decode_whose_prefill_worker_was_started_again_has_nothing_to_fetch_there(self) -> None:
        brain = brain_with(*APART)
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0)
        brain.step(m.WorkerDown("p0", "it died"), 7.0)
        brain.step(m.WorkerUp(replace(worker("p0", Role.PREFILL), epoch=2)), 7.2)
        brain.step(m.LoadReported("d0", Load(waiting=1)), 7.3)
        assert kinds(brain.step(m.Tick(), 7.5)) == ["Abort", "StartPrefill"]

    def test_decode_lost_in_mid_stream_goes_on_elsewhere_from_what_was_sent(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), worker("s1", Role.SERVE))
        asked = m.Arrived("r", "m", 40, output_limit=100, resumable=True)
        first = started(brain.step(asked, 1.0), m.StartDecode)
        brain.step(m.FirstToken(first.wire_id, 16, 0), 1.5)
        lost = m.WorkerDown(first.worker_id, "gone", (m.Sent("r", 7),))
        second = started(brain.step(lost, 1.6), m.StartDecode)
        assert (second.worker_id, second.collect) != (first.worker_id, "")
        assert second.wire_id != first.wire_id
        session = brain._sessions["r"]
        assert (session.prompt_tokens, session.output_limit, session.tokens) == (47, 93, 140)
        brain.check()
        brain.step(m.FirstToken(second.wire_id, 0, 0), 1.7)
        third = brain.step(m.DecodeEnded(second.wire_id, 20, failed=True, detail="no"), 1.8)
        assert (session.prompt_tokens, session.output_limit, kinds(third)) == (60, 80, ["StartDecode"])
        (end,) = brain.step(m.DecodeEnded(started(third, m.StartDecode).wire_id, 100), 1.9)
        assert isinstance(end, m.End)
        report = end.report
        assert (report.outcome, report.prompt_tokens, report.output_tokens, report.cached_tokens) == (
            "finished", 40, 100, 16,
        )  # fmt: skip
        assert (report.queue_seconds, report.prefill_seconds, report.ttft_seconds, report.attempts) == (0, 0.5, 0.5, 3)

    def test_the_account_of_one_that_went_on_is_of_its_own_prompt(self) -> None:
        brain = brain_with(*APART, worker("d1", Role.DECODE))
        prefill = started(brain.step(m.Arrived("r", "m", 40, blocks=(1, 2), resumable=True), 1.0), m.StartPrefill)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True, "", 0), 2.0), m.StartDecode)
        brain.step(m.FirstToken(decode.wire_id, 0, 40), 2.1)
        lost = m.WorkerDown(decode.worker_id, "gone", (m.Sent("r", 30),))
        prefill = started(brain.step(lost, 2.2), m.StartPrefill)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True, "", 64), 2.3), m.StartDecode)
        brain.step(m.FirstToken(decode.wire_id, 64, 6), 2.4)
        (end,) = brain.step(m.DecodeEnded(decode.wire_id, 50), 2.5)
        assert isinstance(end, m.End)
        report = end.report
        assert (report.transferred_tokens, report.kv_bytes, report.predicted_cached_tokens) == (40, 3000, 0)
        assert brain.predictions.accuracy["m"].count == 1
        brain.check()

    def test_a_stream_that_nobody_goes_on_with_ends_with_the_loss_as_its_reason(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), queue_seconds=2.0)
        decode = started(brain.step(m.Arrived("r", "m", 4, resumable=True), 1.0), m.StartDecode)
        brain.step(m.FirstToken(decode.wire_id, 0, 0), 1.1)
        assert brain.step(m.WorkerDown("s0", "its process died", (m.Sent("r", 3),)), 1.2) == []
        (end,) = brain.step(m.Tick(), 3.3)
        assert isinstance(end, m.End)
        assert isinstance(end.error, WorkerLost)
        assert end.report.outcome == "failed"
        assert "its process died; nobody could go on with it within 2 s" in str(end.error)

    def test_a_stream_is_lost_as_often_as_any_request(self) -> None:
        brain = brain_with(*(worker(f"s{n}", Role.SERVE) for n in range(4)))
        commands = brain.step(m.Arrived("r", "m", 4, resumable=True), 1.0)
        for attempt in range(3):
            decode = started(commands, m.StartDecode)
            brain.step(m.FirstToken(decode.wire_id, 0, 0), 1.2 + attempt / 10)
            commands = brain.step(
                m.WorkerDown(decode.worker_id, "gone", (m.Sent("r", 1 + attempt),)), 1.25 + attempt / 10
            )
        assert kinds(commands) == ["End"]

    def test_a_stream_moves_from_workers_that_drain_as_often_as_it_has_to(self) -> None:
        brain = brain_with(*(worker(f"s{n}", Role.SERVE) for n in range(7)))
        commands = brain.step(m.Arrived("r", "m", 4, resumable=True), 1.0)
        retries = brain._sessions._retries.left
        for move in range(6):
            decode, now = started(commands, m.StartDecode), 1.0 + move / 10
            if move % 2:  # one that it was sent to began to drain meanwhile
                commands = brain.step(m.Refused(decode.wire_id, m.Refusal.DRAINING, ""), now)
                continue
            brain.step(m.FirstToken(decode.wire_id, 0, 0), now)
            brain.step(m.WorkerDraining(decode.worker_id), now)
            commands = brain.step(m.WorkerDown(decode.worker_id, "ended", (m.Sent("r", 1 + move),)), now)
            brain.check()
        (end,) = brain.step(m.DecodeEnded(started(commands, m.StartDecode).wire_id, 9), 2.0)
        assert isinstance(end, m.End)
        assert (end.report.outcome, end.report.attempts) == ("finished", 1)
        assert brain._sessions._retries.left == retries

    def test_decode_lost_in_mid_stream_is_a_typed_error_where_it_cant_go_on(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), worker("s1", Role.SERVE))
        decode = started(brain.step(m.Arrived("r", "m", 4), 1.0), m.StartDecode)
        brain.step(m.FirstToken(decode.wire_id, 0, 0), 1.1)
        (end,) = brain.step(m.WorkerDown(decode.worker_id, "gone"), 1.2)
        assert isinstance(end, m.End)
        assert isinstance(end.error, WorkerLost)

    def test_draining_refusal_goes_elsewhere_and_is_remembered(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), worker("s1", Role.SERVE))
        first = started(brain.step(m.Arrived("r", "m", 4), 1.0), m.StartDecode)
        second = started(brain.step(m.Refused(first.wire_id, m.Refusal.DRAINING, ""), 1.1), m.StartDecode)
        third = started(brain.step(m.Arrived("q", "m", 4), 1.2), m.StartDecode)
        assert second.worker_id == third.worker_id != first.worker_id

    def test_full_worker_is_asked_again_until_the_wait_is_over(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), queue_seconds=5.0)
        commands = brain.step(m.Arrived("r", "m", 4), 1.0)
        for at in (2.0, 3.0, 4.0, 5.0):
            decode = started(commands, m.StartDecode)
            assert brain.step(m.LoadReported("s0", Load()), at) == []
            assert brain.step(m.Refused(decode.wire_id, m.Refusal.BUSY, "full"), at) == []
            commands = brain.step(m.Tick(), at + 0.1)
        decode = started(commands, m.StartDecode)
        assert brain.step(m.Refused(decode.wire_id, m.Refusal.BUSY, "full"), 5.5) == []
        (end,) = brain.step(m.Tick(), 6.0)
        assert isinstance(end, m.End)
        assert isinstance(end.error, ClusterFull)
        brain.check()

    def test_who_waited_in_vain_is_told_to_come_back_by_the_pace_of_those_who_wait(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), queue_seconds=5.0)
        brain.step(m.LoadReported("s0", Load(waiting=1000)), 1.0)
        brain.step(m.Arrived("r", "m", 4), 1.0)
        brain.step(m.Arrived("other", "m", 4), 4.0)  # and none was let in meanwhile
        (end,) = brain.step(m.Tick(), 6.0)
        assert isinstance(end.error, ClusterFull)
        assert end.error.retry_after == 60.0

    def test_turned_away_after_its_wait_was_over_ends_at_once(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), queue_seconds=5.0)
        decode = started(brain.step(m.Arrived("r", "m", 4), 1.0), m.StartDecode)
        assert brain.step(m.Tick(), 7.0) == []
        assert brain.step(m.Refused(decode.wire_id, m.Refusal.BUSY, "full"), 8.0) == []
        (end,) = brain.step(m.Tick(), 8.1)
        assert isinstance(end, m.End)
        assert isinstance(end.error, ClusterFull)

    @pytest.mark.parametrize("tokens", [1, 400])
    def test_who_knocks_is_turned_away_exactly_where_it_would_be_however_little_it_asks_for(self, tokens: int) -> None:
        """At 10 tokens a second two requests of 5 fill a second of patience."""
        turned = 0
        for waiting in (1, 2, 3, 100):
            brain = brain_with(worker("s0", Role.SERVE), queue_seconds=1.0)
            brain.admission._pace("m")._rate = 10.0
            brain.step(m.LoadReported("s0", Load(waiting=1000)), 1.0)
            for i in range(waiting):
                brain.step(m.Arrived(f"r{i}", "m", 5), 1.0)
            told = brain.step(m.Knocked("k", "m"), 1.0)
            ends = brain.step(m.Arrived("k", "m", tokens), 1.0)
            assert not told or kinds(ends) == ["End"], "turned away at the door, and yet it would have been let in"
            if tokens == 1:
                assert len(told) == len(ends)
            if told:
                assert isinstance(told[0].error, ClusterFull | Overloaded)
                assert told[0].error.retry_after
            turned += bool(told)
            brain.check()
        assert 0 < turned < 4

    def test_nobody_is_turned_away_at_the_door_while_nobody_waits(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE))
        assert brain.step(m.Knocked("k", "m"), 1.0) == []
        assert brain_with().step(m.Knocked("k", "m"), 1.0) == []

    def test_invalid_refusal_is_not_tried_again(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE))
        decode = started(brain.step(m.Arrived("r", "m", 4), 1.0), m.StartDecode)
        commands = brain.step(m.Refused(decode.wire_id, m.Refusal.INVALID, "bad"), 1.1)
        assert kinds(commands) == ["End"]
        assert commands[-1].error.http_status == 400


class TestBalance:
    def test_burst_between_two_reports_spreads(self) -> None:
        brain = brain_with(*(worker(f"s{i}", Role.SERVE) for i in range(4)))
        at = Counter(started(brain.step(m.Arrived(f"r{i}", "m", 4), 1.0), m.StartDecode).worker_id for i in range(40))
        assert set(at.values()) == {10}

    def test_what_other_gateways_have_there_counts(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), worker("s1", Role.SERVE))
        brain.step(m.LoadReported("s0", Load(running=3, waiting=2, kv_blocks_total=100)), 1.0)
        at = [started(brain.step(m.Arrived(f"r{i}", "m", 4), 1.0), m.StartDecode).worker_id for i in range(5)]
        assert at == ["s1"] * 5

    def test_a_prompt_counts_for_what_it_will_bring_until_its_worker_has_told_what_it_stored(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), routing=RoutingSpec())

        def expected(request_id: str) -> int:
            command = started(brain.step(m.Arrived(request_id, "m", 40, blocks=(7, 8)), 1.0), m.StartDecode)
            assert command.decision.on_decode is not None
            return command.decision.on_decode.cached_tokens

        assert expected("first") == 0
        assert expected("second") == 32
        for request_id in ("first", "second"):
            brain.step(m.FirstToken(f"{request_id}~d1", 0, 0), 1.5)
        assert expected("third") == 32, "what it stored may be told a little later than the first token"
        brain.step(m.FirstToken("third~d1", 0, 0), 1.5)
        brain.step(m.Tick(), 1.54)
        assert expected("fourth") == 32
        brain.step(m.FirstToken("fourth~d1", 0, 0), 1.54)
        brain.step(m.Tick(), 1.7)
        assert expected("fifth") == 0, "all have arrived long ago, and the worker has told of no block"
        brain.step(m.CacheChanged("s0", stored=(7, 8)), 1.7)
        assert expected("sixth") == 32


def test_impossible_signal_tells_its_story() -> None:
    session = Session("r", "m", 4, 0.0, place_by=9.0)
    session.advance(Signal.PLACED_TOGETHER, 1.0)
    with pytest.raises(InvalidTransition, match=r"no way from decoding by 'prefill done'.*waiting \(placed together\)"):
        session.advance(Signal.PREFILL_DONE, 2.0)


class TestModelRouted:
    def test_a_model_is_routed_as_it_was_said_last(self) -> None:
        brain = brain_with(*APART)
        apart = m.ModelRouted("m", "least_load", (), PrefillPlace.APART)
        in_place = m.ModelRouted("m", "prefix_and_load", (m.Parameter("prefix", 2.0),), PrefillPlace.IN_PLACE)
        for number, (routed, kind) in enumerate(((apart, "StartPrefill"), (in_place, "StartDecode"))):
            assert brain.step(routed, 1.0) == []
            assert kinds(brain.step(m.Arrived(f"r{number}", "m", 4), 1.0)) == [kind]

    def test_another_target_holds_from_the_next_request_on(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), slo=SloSpec(ttft_ms=2000.0))

        def waits(request_id: str, until: float) -> None:
            """It is refused at ``until`` and not before; its worker is full."""
            brain.step(m.LoadReported("s0", Load(waiting=1000)), until - 0.1)
            assert brain.step(m.Tick(), until - 0.1) == []
            (end,) = brain.step(m.Tick(), until)
            assert (end.report.request_id, type(end.error)) == (request_id, ClusterFull)

        brain.step(m.LoadReported("s0", Load(waiting=1000)), 1.0)
        brain.step(m.Arrived("a", "m", 40), 1.0)
        waits("a", 3.0)
        brain.step(m.ModelRouted("m", "least_load", (), PrefillPlace.APART, 5.0), 3.0)
        brain.step(m.Arrived("b", "m", 40), 3.0)
        waits("b", 8.0)
        brain.step(m.ModelRouted("m", "least_load", (), PrefillPlace.APART), 8.0)
        brain.step(m.Arrived("c", "m", 40), 8.0)
        waits("c", 38.0)
