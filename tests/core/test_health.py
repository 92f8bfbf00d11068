"""Sick workers are taken out by what their own requests show, never too many of them, and come back by trial."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.core.decision import Rule
from orchestrator.core.evidence import LEAST_SEEN, State
from orchestrator.core.health import PARTS
from orchestrator.core.sick_list import FORGET_SECONDS
from orchestrator.core.spec import GatewaySpec, HealthSpec, ModelSpec, PoolSpec, PrefillPlace, Role, RoutingSpec
from orchestrator.core.types import Load
from tests.core.support import worker

TICK = 0.1
ALIKE = {"weight_bytes": 1 << 30, "max_num_seqs": 64, "kv_blocks_total": 100_000}


class Rig:
    """A brain, its workers, and requests that do what they are told. ``pace``: seconds a token, by worker."""

    def __init__(self, count: int, role: Role = Role.SERVE, **spec: float) -> None:
        self.spec = HealthSpec(**spec)  # type: ignore[arg-type]
        model = ModelSpec("m", "x", {role: PoolSpec(role)}, routing=RoutingSpec("least_load"))
        self.brain = Brain(Random(0), GatewaySpec(health=self.spec), (model,))
        self.now = 0.0
        self.role = role
        self.number = 0
        self.said: list[m.Command] = []
        self.at: dict[str, str] = {}  # where each request's wire is
        self.rules: dict[str, Rule] = {}
        self.names = [f"w{n}" for n in range(count)]
        for name in self.names:
            self.up(name)

    def tell(self, event: m.Event) -> list[m.Command]:
        out = self.brain.step(event, self.now)
        self.brain.check()
        for command in out:
            if isinstance(command, m.StartDecode | m.StartPrefill):
                self.at[command.wire_id] = command.worker_id
                self.rules[command.wire_id] = command.decision.rule
            elif isinstance(command, m.Abort):
                self.at.pop(command.wire_id, None)
        self.said += out
        return out

    def up(self, name: str) -> None:
        self.tell(m.WorkerUp(worker(name, self.role, **ALIKE)))

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.hear()
            self.tell(m.Tick())

    def hear(self) -> None:
        for name in self.names:
            if name in self.brain.fleet:
                self.tell(m.LoadReported(name, Load(kv_blocks_total=100_000), own=0))

    def send(self) -> str:
        """A new request; returns its wire."""
        self.number += 1
        before = set(self.at)
        self.tell(m.Arrived(f"r{self.number}", "m", 100, output_limit=10_000))
        (wire,) = set(self.at) - before
        return wire

    def send_to(self, name: str) -> str:
        """A request that is at this worker; those that others had to be sent before are given up."""
        others = []
        while self.at[wire := self.send()] != name:
            others.append(wire)
            assert len(others) < 200, f"{name} gets nothing"
        for other in others:
            self.cancel(other)
        return wire

    def cancel(self, wire: str) -> None:
        self.tell(m.Cancelled(wire.partition("~")[0]))
        self.at.pop(wire, None)

    def fail(self, wire: str) -> None:
        del self.at[wire]
        self.tell(m.DecodeEnded(wire, 0, failed=True, detail="an error"))
        for again in [other for other in self.at if other.partition("~")[0] == wire.partition("~")[0]]:
            self.cancel(again)

    def finish(self, wire: str, tokens: int = 20, each: float = 0.02) -> None:
        self.tell(m.FirstToken(wire, 0, 0))
        self.now += (tokens - 1) * each
        self.hear()
        del self.at[wire]
        self.tell(m.DecodeEnded(wire, tokens))

    def stop(self, wire: str) -> None:
        self.tell(m.FirstToken(wire, 0, 0))
        del self.at[wire]
        self.tell(m.Cancelled(wire.partition("~")[0], 20, complete=True))

    def state(self, name: str) -> State:
        return self.brain.health.of(name)

    def out(self) -> list[str]:
        return [name for name in self.names if self.state(name) in (State.OUT, State.TRIAL)]

    @property
    def sick(self) -> list[m.Sick]:
        return [said for said in self.said if isinstance(said, m.Sick)]


def make_fail(rig: Rig, name: str, times: int = 4) -> None:
    for _ in range(times):
        rig.fail(rig.send_to(name))


def test_a_worker_that_fails_gets_no_more_requests_and_it_is_told_once_with_the_evidence() -> None:
    rig = Rig(4)
    running = rig.send_to("w1")
    make_fail(rig, "w1")
    assert rig.out() == ["w1"]
    assert {rig.at[rig.send()] for _ in range(50)} <= {"w0", "w2", "w3"}
    assert running in rig.at  # what runs there goes on
    (said,) = rig.sick
    assert (said.worker_id, said.over) == ("w1", False)
    assert "4 in a row" in said.why
    start = next(c for c in reversed(rig.said) if isinstance(c, m.StartDecode))
    assert "of 3 (1 more taken out)" in start.decision.reasons[0]


def test_it_is_tried_with_one_request_at_a_time_and_comes_back_if_that_goes_well() -> None:
    rig = Rig(4, backoff_initial=5.0)
    make_fail(rig, "w1")
    rig.pass_time(4.0)
    assert "w1" not in {rig.at[rig.send()] for _ in range(20)}
    rig.pass_time(3.0)
    wires = [rig.send() for _ in range(20)]
    (trial,) = [wire for wire in wires if rig.at[wire] == "w1"]
    assert rig.rules[trial] is Rule.TRIAL
    rig.finish(trial)
    assert rig.out() == []
    assert [said.over for said in rig.sick] == [False, True]


def test_a_trial_that_fails_doubles_the_wait_up_to_a_bound() -> None:
    rig = Rig(4, backoff_initial=5.0, backoff_max=20.0)
    make_fail(rig, "w1")
    waits = []
    for _ in range(4):
        began = rig.now
        while rig.state("w1") is State.OUT:
            rig.pass_time(TICK)
        waits.append(rig.now - began)
        rig.fail(rig.send_to("w1"))
    assert waits == pytest.approx([5, 10, 20, 20], abs=1.5)


def test_a_trial_that_is_cancelled_shows_nothing_and_another_follows() -> None:
    rig = Rig(4)
    make_fail(rig, "w1")
    rig.pass_time(8.0)
    rig.cancel(rig.send_to("w1"))
    assert rig.state("w1") is State.TRIAL
    rig.finish(rig.send_to("w1"))
    assert rig.out() == []


def test_a_trial_that_ends_with_a_stop_string_went_well() -> None:
    rig = Rig(4)
    make_fail(rig, "w1")
    rig.pass_time(8.0)
    rig.stop(rig.send_to("w1"))
    assert rig.out() == []


def streamed(rig: Rig, name: str, seconds: float, *, steps: bool) -> None:
    """Time passes, in which a worker says that it steps, or only that it is there."""
    for _ in range(round(seconds / TICK)):
        rig.tell(m.LoadReported(name, Load(running=1, kv_blocks_total=100_000), own=1, stepped=steps))
        rig.pass_time(TICK)


@pytest.mark.parametrize("how", ["failing", "flapping"])
def test_a_long_generation_keeps_no_worker_on_trial_once_its_tokens_came_for_a_while(how: str) -> None:
    rig = Rig(4)
    if how == "failing":
        make_fail(rig, "w1")
    else:
        for _ in range(4):
            rig.tell(m.WorkerDown("w1", "its link broke"))
            rig.up("w1")
    assert rig.out() == ["w1"]
    while rig.state("w1") is State.OUT:
        rig.pass_time(1.0)
    wire = rig.send_to("w1")
    streamed(rig, "w1", 7.0, steps=True)
    assert rig.state("w1") is State.TRIAL  # no token came of all that
    rig.tell(m.FirstToken(wire, 0, 0))
    streamed(rig, "w1", 3.0, steps=True)
    streamed(rig, "w1", 20.0, steps=False)
    assert rig.state("w1") is State.TRIAL  # it stands still
    streamed(rig, "w1", 2.0, steps=True)
    assert rig.out() == []
    assert rig.sick[-1].why == "tokens came for 5 s"
    rig.tell(m.DecodeEnded(wire, 5000))
    assert rig.state("w1") is State.HEALTHY


def test_requests_that_end_with_a_stop_string_speak_for_a_worker() -> None:
    rig = Rig(4)
    for _ in range(6):
        for _ in range(30):
            rig.stop(rig.send_to("w1"))
        rig.fail(rig.send_to("w1"))
    assert rig.out() == []


def test_no_trial_pairs_workers_that_cant_hand_kv_over() -> None:
    routing = RoutingSpec("least_load", prefill=PrefillPlace.APART)
    brain = Brain(Random(0), GatewaySpec(), (ModelSpec("m", "x", {}, routing=routing),))
    for name, role, kv in (("p", Role.PREFILL, "b"), ("d0", Role.DECODE, "a"), ("d1", Role.DECODE, "b")):
        brain.step(m.WorkerUp(worker(name, role, kv_format=kv, **ALIKE)), 0.0)
    for _ in range(5):
        brain.health.failed("d0", 0.0, [])
    for tick in range(80):
        for name in ("p", "d0", "d1"):
            brain.step(m.LoadReported(name, Load(kv_blocks_total=100_000), own=0), tick * TICK)
        brain.step(m.Tick(), tick * TICK)
    assert brain.health.of("d0") is State.TRIAL
    (start,) = brain.step(m.Arrived("r", "m", 100), 80 * TICK)
    assert isinstance(start, m.StartPrefill)
    assert (start.decision.prefill, start.decision.decode) == ("p", "d1")


def test_requests_that_are_refused_as_wrong_or_given_up_by_their_clients_speak_against_nobody() -> None:
    rig = Rig(3)
    for _ in range(40):
        wire = rig.send_to("w0")
        del rig.at[wire]
        rig.tell(m.Refused(wire, m.Refusal.INVALID, "too long"))
        rig.cancel(rig.send_to("w0"))
        rig.pass_time(TICK)
    assert rig.out() == []


def test_what_breaks_any_engine_takes_nobody_out() -> None:
    rig = Rig(10)
    for _ in range(30):
        for name in rig.names:
            if rig.state(name) not in (State.OUT, State.TRIAL):
                rig.fail(rig.send_to(name))
        rig.pass_time(TICK)
    assert rig.out() == []


def test_more_sick_workers_than_may_be_out_raise_an_alert_until_there_are_no_more() -> None:
    rig = Rig(10)
    for name in rig.names[5:]:
        for _ in range(30):
            rig.finish(rig.send_to(name))
    for _ in range(6):
        for name in rig.names[:5]:
            if rig.state(name) not in (State.OUT, State.TRIAL):
                rig.fail(rig.send_to(name))
        rig.pass_time(0.3)
    rig.pass_time(1.2)
    alerts = [said for said in rig.said if isinstance(said, m.Alert)]
    assert len(rig.out()) == 3
    assert [alert.over for alert in alerts] == [False]
    rig.pass_time(60.0)
    alerts = [said for said in rig.said if isinstance(said, m.Alert)]
    assert [alert.over for alert in alerts] == [False, True]


def test_a_worker_whose_session_breaks_again_and_again_is_out_when_it_comes_back() -> None:
    rig = Rig(4)
    for _ in range(3):
        rig.tell(m.WorkerDown("w2", "the stream broke"))
        rig.pass_time(1.0)
        rig.up("w2")
    assert rig.out() == ["w2"]
    rig.tell(m.WorkerDown("w3", "it was replaced"))
    rig.up("w3")
    assert rig.out() == ["w2"]
    assert "broke 3 times" in rig.sick[-1].why


def test_nothing_is_kept_of_workers_that_are_gone_for_good() -> None:
    rig = Rig(4)
    make_fail(rig, "w1")
    rig.tell(m.WorkerDown("w1", "it died"))
    for number in range(20):
        rig.up(f"gone-{number}")
        if number % 2:
            rig.tell(m.WorkerDraining(f"gone-{number}"))
        rig.tell(m.WorkerDown(f"gone-{number}", "it died"))
    away_until = rig.now + 2.0 * rig.spec.backoff_initial
    while rig.now < away_until + FORGET_SECONDS - 1.0:
        assert rig.state("w1") is State.OUT
        rig.now += 1.0
        rig.tell(m.Tick())
    for _ in range(2 * PARTS):
        rig.tell(m.Tick())
        rig.now += 0.5
    assert set(rig.brain.health._records) == {"w0", "w2", "w3"}
    rig.up("w1")
    assert rig.out() == []


def test_a_network_that_is_down_takes_nobody_out() -> None:
    rig = Rig(4)
    for _ in range(4):
        for name in rig.names:
            rig.tell(m.WorkerDown(name, "the stream broke"))
        rig.pass_time(1.0)
        for name in rig.names:
            rig.up(name)
    assert rig.out() == []


def test_failures_are_remembered_for_as_long_in_a_small_pool() -> None:
    rig = Rig(2)
    for pause in (0.0, 0.0, 5.0, 0.0, 0.0):
        rig.pass_time(pause)
        assert rig.out() == []
        rig.finish(rig.send_to("w0"))
        rig.fail(rig.send_to("w0"))
    assert rig.out() == ["w0"]


def test_a_request_that_was_lost_is_no_trial() -> None:
    rig = Rig(4)
    make_fail(rig, "w1")
    wire = rig.send()
    rig.pass_time(8.0)
    assert rig.state("w1") is State.TRIAL
    del rig.at[wire]
    rig.tell(m.DecodeEnded(wire, 0, failed=True, detail="an error"))
    assert [at for other, at in rig.at.items() if other.partition("~")[0] == wire.partition("~")[0]] != ["w1"]
    assert rig.at[rig.send()] == "w1"


def test_a_worker_that_leaves_as_it_was_told_to_is_no_sign_of_anything() -> None:
    rig = Rig(4)
    for _ in range(6):
        rig.tell(m.WorkerDraining("w2"))
        rig.tell(m.WorkerDown("w2", "it left"))
        rig.up("w2")
    assert rig.out() == []


def work_through(rig: Rig, slow: str, each: float, rounds: int = 40, tokens: int = 20) -> None:
    for _ in range(rounds):
        for name in rig.names:
            if rig.state(name) not in (State.OUT, State.TRIAL):
                rig.finish(rig.send_to(name), tokens, each if name == slow else 0.02)
        rig.pass_time(0.2)


def test_a_worker_whose_tokens_take_several_times_as_long_is_out_until_a_trial_shows_that_they_do_not() -> None:
    rig = Rig(4)
    work_through(rig, "w0", 0.1)
    assert rig.out() == ["w0"]
    assert "5.0 times as long" in rig.sick[-1].why
    rig.pass_time(8.0)
    rig.finish(rig.send_to("w0"), 3, 0.02)
    assert rig.state("w0") is State.TRIAL  # so few tokens show nothing
    rig.finish(rig.send_to("w0"), 20, 0.1)
    assert rig.state("w0") is State.OUT
    rig.pass_time(12.0)
    rig.finish(rig.send_to("w0"), 20, 0.02)
    assert rig.out() == []
    work_through(rig, "nobody", 0.0)
    assert rig.out() == []


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=30), st.integers(0, 3))
@settings(max_examples=30)
def test_long_generations_never_take_a_worker_out(lengths: list[int], at: int) -> None:
    rig = Rig(4)
    for length in lengths:
        for place, name in enumerate(rig.names):
            rig.finish(rig.send_to(name), length if place == at else 9, 0.02)
        rig.pass_time(1.0)
    assert rig.out() == []


def test_a_worker_that_had_many_at_once_is_not_slow_because_its_last_ones_end_alone() -> None:
    rig = Rig(4)
    step = rig.brain.fleet.get("w0").cost.peers.step
    step.fixed, step.slope = 0.01, 0.01
    for _ in range(20):
        for name in rig.names[1:]:
            rig.finish(rig.send_to(name), 20, 0.02)
        rig.pass_time(TICK)
    lengths: dict[str, int] = {}
    for number in range(1, 25):
        wire = rig.send_to("w0")
        rig.tell(m.FirstToken(wire, 0, 0))
        lengths[wire] = 10 * number
    rig.tell(m.LoadReported("w0", Load(24, kv_blocks_total=100_000), own=24))
    for token in range(1, max(lengths.values()) + 1):
        rig.now += step.at(len(lengths))
        for wire in [wire for wire, length in lengths.items() if length == token]:
            del lengths[wire], rig.at[wire]
            rig.tell(m.DecodeEnded(wire, token + 1))
        rig.tell(m.LoadReported("w0", Load(len(lengths), kv_blocks_total=100_000), own=len(lengths)))
        if token % 5 == 0:
            rig.tell(m.Tick())
    assert not rig.sick
    assert math.exp(rig.brain.health._records["w0"].tempo) == pytest.approx(1.0, rel=0.1)


def test_tokens_that_wait_for_long_prompts_between_their_steps_make_no_worker_slow() -> None:
    rig = Rig(4)
    for name in rig.names:
        for _ in range(2 * LEAST_SEEN):
            rig.brain.fleet.get(name).cost.saw_step(1, 0.02)
    work_through(rig, "w0", 0.1)
    assert not rig.sick
    for _ in range(8 * LEAST_SEEN):
        rig.brain.fleet.get("w0").cost.saw_step(1, 0.1)
    work_through(rig, "w0", 0.1)
    assert rig.out() == ["w0"], "its steps are slow too"


def test_a_worker_that_is_little_known_is_not_judged_as_slow() -> None:
    rig = Rig(4)
    for _ in range(3):
        rig.finish(rig.send_to("w0"), 20, 1.0)
        for name in rig.names[1:]:
            for _ in range(5):
                rig.finish(rig.send_to(name), 20, 0.02)
        rig.pass_time(10.0)
    assert rig.out() == []


def test_of_a_pool_of_one_nobody_is_out_and_of_two_one_is() -> None:
    alone, two = Rig(1), Rig(2)
    make_fail(alone, "w0", 20)
    assert alone.out() == []
    make_fail(two, "w0")
    assert two.out() == ["w0"]
    two.tell(m.WorkerDown("w1", "it died"))
    assert two.out() == []
    assert two.at[two.send()] == "w0"


def test_nobody_is_taken_out_where_it_is_switched_off() -> None:
    rig = Rig(4, enabled=False)
    make_fail(rig, "w1", 30)
    assert rig.out() == []


KINDS = ["fail", "finish", "slow", "break", "up", "drain", "wait", "send"]
THINGS = st.tuples(st.sampled_from(KINDS), st.integers(0, 5))


def happen(rig: Rig, what: str, name: str, number: int) -> None:
    there = name in rig.brain.fleet
    wires = [wire for wire, at in rig.at.items() if at == name]
    if what == "up" and not there:
        rig.up(name)
    elif what == "break" and there:
        rig.tell(m.WorkerDown(name, "it broke"))
        rig.at = {wire: at for wire, at in rig.at.items() if at != name}
    elif what == "drain" and there and number == 5:
        rig.tell(m.WorkerDraining(name))
    elif what == "wait":
        rig.pass_time(0.1 + number)
    elif what == "send" and rig.brain.fleet.pool("m", rig.role).views:
        rig.send()
    elif wires and what == "fail":
        rig.fail(wires[0])
    elif wires and what in ("finish", "slow"):
        rig.finish(wires[0], 20, 0.02 if what == "finish" else 0.3)


@given(st.lists(THINGS, max_size=120), st.integers(1, 6), st.sampled_from([0.1, 0.3, 0.9]))
@settings(max_examples=60, deadline=None)
def test_whatever_is_seen_a_bounded_share_is_out_and_all_that_behave_come_back(
    things: list[tuple[str, int]], count: int, share: float
) -> None:
    rig = Rig(count, most_out=share, backoff_max=20.0)
    for what, number in things:
        happen(rig, what, rig.names[number % count], number)
        present = [view for view in rig.brain.fleet if not view.draining]
        views = rig.brain.fleet.pool("m", rig.role).views
        assert len(present) - len(views) <= max(1, int(share * len(present)))
        assert bool(views) == bool(present)
    for name in rig.names:
        rig.up(name)  # anew, where it is there
    rig.at.clear()
    until = rig.now + 2 * rig.spec.backoff_max + 10.0
    while rig.now < until:
        rig.pass_time(1.0)
        for _ in range(count):
            rig.finish(rig.send(), 20, 0.02)
    assert rig.out() == []
