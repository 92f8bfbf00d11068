"""The brain's promises, over any order of events: every request ends once, books balance, nothing goes to strangers."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.core.errors import DeadlineExceeded, NotReady, Overloaded, WorkerLost
from orchestrator.core.session import InvalidTransition, Session, Signal
from orchestrator.core.spec import Role
from orchestrator.core.types import EngineFacts, Load, WorkerInfo

FACTS = EngineFacts(block_size=16, kv_blocks_total=100, kv_block_bytes=1000, max_model_len=512, max_num_seqs=8)


def worker(worker_id: str, role: Role, model: str = "m") -> WorkerInfo:
    return WorkerInfo(worker_id, model, role, f"{worker_id}:1", epoch=1, facts=FACTS)


def brain_with(*workers: WorkerInfo, queue_seconds: float = 30.0) -> Brain:
    brain = Brain(Random(0), queue_seconds=queue_seconds)
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

    def test_deadline_ends_it_wherever_it_is(self) -> None:
        brain = brain_with(*APART)
        brain.step(m.Arrived("r", "m", 40, deadline=3.0), 1.0)
        commands = brain.step(m.Tick(), 3.0)
        assert kinds(commands) == ["Abort", "End"]
        assert isinstance(commands[-1].error, DeadlineExceeded)

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

    def test_decode_lost_before_a_token_starts_again(self) -> None:
        brain = brain_with(*APART, worker("d1", Role.DECODE))
        prefill = started(brain.step(m.Arrived("r", "m", 40), 1.0), m.StartPrefill)
        decode = started(brain.step(m.PrefillEnded(prefill.wire_id, True), 2.0), m.StartDecode)
        commands = brain.step(m.WorkerDown(decode.worker_id, "gone"), 2.1)
        assert kinds(commands) == ["Release", "StartPrefill"]

    def test_decode_lost_in_mid_stream_is_a_typed_error(self) -> None:
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
            assert brain.step(m.Refused(decode.wire_id, m.Refusal.BUSY, "full"), at) == []
            commands = brain.step(m.Tick(), at + 0.1)
        decode = started(commands, m.StartDecode)
        assert brain.step(m.Refused(decode.wire_id, m.Refusal.BUSY, "full"), 5.5) == []
        (end,) = brain.step(m.Tick(), 6.0)
        assert isinstance(end, m.End)
        assert isinstance(end.error, Overloaded)
        brain.check()

    def test_turned_away_after_its_wait_was_over_ends_at_once(self) -> None:
        brain = brain_with(worker("s0", Role.SERVE), queue_seconds=5.0)
        decode = started(brain.step(m.Arrived("r", "m", 4), 1.0), m.StartDecode)
        assert brain.step(m.Tick(), 7.0) == []
        assert brain.step(m.Refused(decode.wire_id, m.Refusal.BUSY, "full"), 8.0) == []
        (end,) = brain.step(m.Tick(), 8.1)
        assert isinstance(end, m.End)
        assert isinstance(end.error, Overloaded)

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


def test_impossible_signal_tells_its_story() -> None:
    session = Session("r", "m", 4, False, 0.0, place_by=9.0, deadline=None)
    session.advance(Signal.PLACED_TOGETHER, 1.0)
    with pytest.raises(InvalidTransition, match=r"no way from decoding by 'prefill done'.*waiting \(placed together\)"):
        session.advance(Signal.PREFILL_DONE, 2.0)


class AnyOrder(RuleBasedStateMachine):
    """A world that loses workers, answers late, refuses and cancels at will."""

    workers = Bundle("workers")
    wires = Bundle("wires")

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.now = 0.0
        self.brain = Brain(Random(seed), queue_seconds=10.0)
        self.up: set[str] = set()
        self.asked: set[str] = set()
        self.ended: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.to_collect: set[str] = set()
        self.wire_of: dict[str, m.StartPrefill | m.StartDecode] = {}
        self.tokens: set[str] = set()
        self.turned_away: set[str] = set()

    def feed(self, event: m.Event) -> None:
        for command in self.brain.step(event, self.now):
            self.take(command)
        self.brain.check()

    def take(self, command: m.Command) -> None:
        match command:
            case m.StartPrefill() | m.StartDecode():
                assert command.worker_id in self.up
                assert command.wire_id not in self.wire_of
                self.wire_of[command.wire_id] = command
                if command.request_id not in self.turned_away:
                    self.starts[command.request_id] += isinstance(command, m.StartPrefill) or command.collect is None
                if isinstance(command, m.StartDecode) and command.collect:
                    assert command.collect in self.to_collect
                    self.to_collect.discard(command.collect)
            case m.Abort(wire_id, worker_id):
                assert worker_id in self.up
                assert self.wire_of[wire_id].worker_id == worker_id
            case m.Release(prefill_wire_id, worker_id):
                assert worker_id in self.up
                self.to_collect.discard(prefill_wire_id)
            case m.Forget(prefill_wire_id):
                self.to_collect.discard(prefill_wire_id)
            case m.End(report, _):
                self.ended[report.request_id] += 1

    @rule(target=workers, n=st.integers(0, 5), role=st.sampled_from([Role.PREFILL, Role.DECODE]))
    def worker_up(self, n: int, role: Role) -> str:
        worker_id = f"{role}{n}"
        self.up.add(worker_id)
        self.feed(m.WorkerUp(worker(worker_id, role)))
        return worker_id

    @rule(worker_id=consumes(workers))
    def worker_down(self, worker_id: str) -> None:
        self.up.discard(worker_id)
        self.feed(m.WorkerDown(worker_id, "gone"))

    @rule(worker_id=workers)
    def worker_drains(self, worker_id: str) -> None:
        self.feed(m.WorkerDraining(worker_id))

    @rule(worker_id=workers, running=st.integers(0, 20))
    def load(self, worker_id: str, running: int) -> None:
        self.feed(m.LoadReported(worker_id, Load(running=running, kv_blocks_total=10)))

    @rule(prompt=st.integers(1, 5000), local=st.booleans(), in_seconds=st.none() | st.floats(0.1, 20))
    def arrive(self, prompt: int, local: bool, in_seconds: float | None) -> None:
        request_id = f"r{len(self.asked)}"
        self.asked.add(request_id)
        deadline = None if in_seconds is None else self.now + in_seconds
        self.feed(m.Arrived(request_id, "m", prompt, local, deadline))

    def _pick(self, data: st.DataObject, kind: type) -> str | None:
        wires = sorted(w for w, c in self.wire_of.items() if isinstance(c, kind))
        return data.draw(st.sampled_from(wires)) if wires else None

    @rule(data=st.data(), collectable=st.booleans())
    def prefill_ends(self, data: st.DataObject, collectable: bool) -> None:
        if wire_id := self._pick(data, m.StartPrefill):
            if self.wire_of[wire_id].worker_id not in self.up:
                return  # nobody is there to say it
            del self.wire_of[wire_id]
            if collectable:
                self.to_collect.add(wire_id)
            self.feed(m.PrefillEnded(wire_id, collectable, "failed"))
            assert wire_id not in self.to_collect, "pinned blocks that nobody will free"

    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        wire_id = self._pick(data, m.StartDecode)
        if wire_id and wire_id not in self.tokens and self.wire_of[wire_id].worker_id in self.up:
            self.tokens.add(wire_id)
            self.feed(m.FirstToken(wire_id, 0, 0))

    @rule(data=st.data(), failed=st.booleans())
    def decode_ends(self, data: st.DataObject, failed: bool) -> None:
        if (wire_id := self._pick(data, m.StartDecode)) and self.wire_of[wire_id].worker_id in self.up:
            del self.wire_of[wire_id]
            self.feed(m.DecodeEnded(wire_id, 3, failed, "failed"))

    @rule(data=st.data(), refusal=st.sampled_from(list(m.Refusal)))
    def refuse(self, data: st.DataObject, refusal: m.Refusal) -> None:
        wire_id = self._pick(data, (m.StartPrefill, m.StartDecode))
        if wire_id and wire_id not in self.tokens and self.wire_of[wire_id].worker_id in self.up:
            command = self.wire_of.pop(wire_id)
            if refusal is m.Refusal.BUSY:
                self.turned_away.add(command.request_id)  # these may be placed any number of times, within their wait
            self.feed(m.Refused(wire_id, refusal, "no"))

    @rule(data=st.data(), complete=st.booleans())
    def cancel(self, data: st.DataObject, complete: bool) -> None:
        if self.asked:
            self.feed(m.Cancelled(data.draw(st.sampled_from(sorted(self.asked))), 0, complete))

    @rule(seconds=st.floats(0.0, 12.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(m.Tick())
        for session in self.brain._sessions.values():
            assert session.deadline is None or session.deadline > self.now, "outlived its deadline"
            assert session.state != "waiting" or session.place_by > self.now, "waits without a bound"

    @invariant()
    def nothing_ends_twice_or_starts_too_often(self) -> None:
        if hasattr(self, "ended"):
            assert all(count == 1 for count in self.ended.values())
            assert all(count <= 3 for count in self.starts.values())
            assert self.brain.live == len(self.asked) - len(self.ended)

    def teardown(self) -> None:
        if not hasattr(self, "ended"):
            return
        for request_id in sorted(self.asked):
            self.feed(m.Cancelled(request_id))
        assert set(self.ended) == self.asked
        assert self.brain.live == 0
        assert all(not view.ours for view in self.brain.fleet)


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
