"""Who is out, on trial and back: whatever comes, the books balance, and a pool keeps enough of its workers."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.decision import Decision, Rule
from orchestrator.core.evidence import Evidence, Group, Record, State
from orchestrator.core.fleet import Fleet
from orchestrator.core.session import Session
from orchestrator.core.sick_list import FORGET_SECONDS, SickList
from orchestrator.core.spec import HealthSpec, Role
from tests.core.support import worker

SPEC = HealthSpec(backoff_initial=5.0, backoff_max=20.0)


class Ward:
    """A sick list, its fleet, and what was told of each worker. Roles by how a name begins."""

    def __init__(self, *names: str, most_out: float = 0.3) -> None:
        self.spec = HealthSpec(most_out=most_out, backoff_initial=5.0, backoff_max=20.0)
        self.fleet = Fleet()
        self.list = SickList(self.spec, self.fleet)
        self.records: dict[str, Record] = {}
        self.now = 0.0
        self.told: list[m.Sick] = []
        self.numbers = count()
        for name in names:
            self.up(name)

    def up(self, name: str, **facts: object) -> None:
        role = {"prefill": Role.PREFILL, "decode": Role.DECODE}.get(name.partition("-")[0], Role.SERVE)
        group = self.list.groups.setdefault(("m", role), Group("m", role))
        record = self.records.setdefault(name, Record(name, group))
        self._hear(self.list.joins, record, self.fleet.up(worker(name, role, **facts), self.now))

    def leave(self, name: str) -> None:
        self._hear(self.list.leaves, self.records[name])
        self.fleet.down(name)

    def sicken(self, name: str, evidence: Evidence = Evidence.FAILING, bad: float = 1.0) -> None:
        record = self.records[name]
        record.bad = bad
        self._hear(self.list.take_out, record, evidence, "it fails")

    def is_well(self, name: str) -> None:
        self._hear(self.list.is_well, self.records[name], "a trial went well")

    def stays_out(self, name: str) -> None:
        self.list.stays_out(self.records[name], self.now)

    def _hear(self, what: object, *args: object) -> None:
        out: list[m.Command] = []
        what(*args, self.now, out)  # type: ignore[operator]
        self.told += [said for said in out if isinstance(said, m.Sick)]

    def later(self, seconds: float) -> None:
        """Time passes, all workers speak, and whoever has been out for long enough may be tried."""
        self.now += seconds
        for view in self.fleet:
            view.heard_at = self.now
        for record in self.records.values():
            if record.state is State.OUT and record.view is not None:
                self.list.may_be_tried(record, self.now)

    def request(self, name: str = "r", **known: object) -> Session:
        return Session(name, "m", 100, self.now, self.now + 10.0, **known)  # type: ignore[arg-type]

    def asked(self, session: Session, decision: Decision | None = None) -> Decision:
        return self.list.trial(session, decision or Decision("elsewhere", None, Rule.ONE_POOL), self.now)

    def wait_of(self, name: str) -> float:
        """Seconds until it may be tried."""
        before = self.now
        while self.state(name) is State.OUT:
            self.later(0.5)
        return self.now - before

    def state(self, name: str) -> State:
        return self.records[name].state

    @property
    def pool(self) -> set[str]:
        return {view.info.worker_id for role in Role for view in self.fleet.pool("m", role).views}

    def check(self) -> None:
        self.list.check()
        present = {name: record for name, record in self.records.items() if record.view is not None}
        apart = {name for name in present if self.state(name) in (State.OUT, State.TRIAL)}
        assert self.pool == set(present) - apart
        most = max(1, int(self.spec.most_out * len(present))) if self.spec.most_out else 0
        assert len(apart) <= max(0, min(len(present) - 1, most))
        last = {said.worker_id: not said.over for said in self.told}
        assert {name for name in present if last.get(name)} == apart, "what was told last is what is"
        assert not {r.trial for r in self.records.values() if r.trial} ^ set(self.list.tried)


def test_the_wait_doubles_with_each_relapse_up_to_a_bound_and_begins_anew_after_good_health() -> None:
    ward = Ward(*"abcd")
    waits = []
    for _ in range(4):
        ward.sicken("a")
        waits.append(ward.wait_of("a"))
        ward.is_well("a")
    assert waits == [5.0, 10.0, 20.0, 20.0]
    ward.later(FORGET_SECONDS - 1.0)
    ward.sicken("a")
    assert ward.wait_of("a") == 20.0
    ward.is_well("a")
    ward.later(FORGET_SECONDS)
    ward.sicken("a")
    assert ward.wait_of("a") == 5.0


def test_of_one_that_is_well_again_nothing_is_kept_from_when_it_was_sick() -> None:
    ward = Ward(*"abcd")
    view = ward.fleet.get("a")
    assert view is not None
    for _ in range(100):
        view.cost.saw_step(1, 10.0)
    assert view.cost.step.seen
    ward.sicken("a", Evidence.SLOW)
    ward.wait_of("a")
    ward.is_well("a")
    ward.check()
    record = ward.records["a"]
    assert (record.bad, record.why, view.cost.step.seen) == (0.0, "", 0)
    assert (ward.told[-1].why, ward.told[-1].over) == ("a trial went well", True)


def test_a_trial_that_shows_nothing_is_followed_by_another_and_one_that_goes_badly_by_a_longer_wait() -> None:
    ward = Ward(*"abcd")
    ward.sicken("a")
    ward.wait_of("a")
    assert ward.asked(ward.request("1")).decode == "a"
    ward.list.untried("1")
    ward.list.untried("a stranger")
    ward.check()
    assert ward.asked(ward.request("2")).decode == "a"
    ward.stays_out("a")
    ward.check()
    assert ward.state("a") is State.OUT
    assert ward.wait_of("a") == 10.0


def test_one_that_was_out_when_it_left_is_out_again_when_it_comes_and_that_is_told() -> None:
    ward = Ward(*"abcd")
    ward.sicken("a")
    ward.leave("a")
    ward.check()
    ward.up("a")
    ward.check()
    assert ward.state("a") is State.OUT
    assert [(said.worker_id, said.why, said.over) for said in ward.told] == [("a", "it fails", False)] * 2
    assert ward.wait_of("a") == 5.0


def test_one_that_comes_back_when_others_are_out_serves_and_stays_suspect() -> None:
    ward = Ward(*"abcd")
    ward.sicken("a")
    ward.leave("a")
    ward.sicken("b")
    ward.up("a")
    ward.check()
    assert (ward.state("a"), ward.state("b")) == (State.SUSPECT, State.OUT)
    assert ward.told[-1].over


def test_one_on_trial_that_leaves_is_tried_with_nothing_any_more() -> None:
    ward = Ward(*"abcd")
    ward.sicken("a")
    ward.wait_of("a")
    ward.asked(ward.request("1"))
    ward.leave("a")
    ward.check()
    assert (ward.list.wanted, ward.list.tried) == (0, {})
    ward.up("a")
    ward.later(0.0)
    assert ward.list.wanted == 1, "its wait was over before it left"


def test_more_than_may_be_out_are_suspect_and_the_pool_is_known_to_be_full_of_sick_ones() -> None:
    ward = Ward(*"abcdefg")
    for name in "abc":
        ward.sicken(name)
    ward.check()
    assert [ward.state(name) for name in "abc"] == [State.OUT, State.OUT, State.SUSPECT]
    assert ward.records["a"].group.full


def test_where_a_pool_shrinks_slow_ones_come_back_first_and_then_those_that_failed_least() -> None:
    ward = Ward(*(f"w{n}" for n in range(10)))
    ward.sicken("w0", Evidence.FAILING, bad=9.0)
    ward.sicken("w1", Evidence.FAILING, bad=1.0)
    ward.sicken("w2", Evidence.SLOW, bad=20.0)
    for name in ("w9", "w8", "w7", "w6", "w5"):
        ward.leave(name)
        ward.check()
    back = [said.worker_id for said in ward.told if said.over]
    assert back == ["w2", "w1"]
    assert (ward.state("w2"), ward.records["w2"].bad) == (State.SUSPECT, 20.0), "it is not well for that"
    assert ward.state("w0") is State.OUT


def test_a_request_that_had_trouble_already_tries_nobody() -> None:
    ward = Ward(*"abcd")
    ward.sicken("a")
    ward.wait_of("a")
    assert ward.asked(ward.request("1", attempts=1)).decode == "elsewhere"
    assert ward.asked(ward.request("2", turned_away=True)).decode == "elsewhere"
    other = Session("3", "another model", 100, ward.now, ward.now + 10.0)
    assert ward.asked(other).decode == "elsewhere"
    found = ward.asked(ward.request("4"))
    assert (found.decode, found.rule) == ("a", Rule.TRIAL)
    assert ward.asked(ward.request("5")).decode == "elsewhere", "one request at a time"


@pytest.mark.parametrize("why", ["it does not speak", "it is full", "it lacks the adapter"])
def test_nobody_is_tried_with_what_it_cant_take(why: str) -> None:
    ward = Ward(*"abcd")
    ward.sicken("a")
    ward.wait_of("a")
    view = ward.fleet.get("a")
    assert view is not None
    if why == "it does not speak":
        view.heard_at = ward.now - 60.0
    elif why == "it is full":
        view.busy_until = ward.now + 1.0
    else:
        view.adapters = frozenset(("another",))
    assert ward.asked(ward.request("1", adapter="own")).decode == "elsewhere"
    assert (ward.list.wanted, ward.list.tried) == (1, {})


def test_prefill_workers_are_tried_where_a_prompt_is_computed_apart_by_a_pair_that_can_hand_kv_over() -> None:
    ward = Ward("prefill-0", "prefill-1", "prefill-2")
    ward.up("decode-one", kv_format="one")
    ward.up("decode-other", kv_format="other")
    ward.leave("prefill-0")
    ward.up("prefill-0", kv_format="one")
    ward.sicken("prefill-0")
    ward.wait_of("prefill-0")
    assert ward.asked(ward.request("1"), Decision("decode-one", None, Rule.ONE_POOL)).prefill is None
    assert (
        ward.asked(ward.request("2"), Decision("decode-other", "prefill-1", Rule.CHEAPER_APART)).prefill == "prefill-1"
    )
    found = ward.asked(ward.request("3"), Decision("decode-one", "prefill-1", Rule.CHEAPER_APART))
    assert (found.decode, found.prefill, found.rule) == ("decode-one", "prefill-0", Rule.TRIAL)


def test_what_is_held_against_one_that_is_away_is_forgotten_once_it_would_not_count_any_more() -> None:
    ward = Ward(*"abcd")
    ward.later(1000.0)
    ward.sicken("a")
    ward.leave("a")
    record = ward.records["a"]
    assert not ward.list.forgotten(record, ward.now + FORGET_SECONDS)
    assert ward.list.forgotten(record, ward.now + SPEC.backoff_initial + FORGET_SECONDS)
    ward.leave("b")
    assert not ward.list.forgotten(ward.records["b"], ward.now + FORGET_SECONDS - 1.0)
    assert ward.list.forgotten(ward.records["b"], ward.now + FORGET_SECONDS)


ACTS = st.tuples(
    st.sampled_from(("sicken", "slow", "come or go", "ask", "well", "worse", "untried", "later")), st.integers(0, 9)
)


def act(ward: Ward, what: str, name: str, number: int) -> None:
    record = ward.records[name]
    apart = record.state in (State.OUT, State.TRIAL)
    if what == "come or go":
        ward.up(name) if record.view is None else ward.leave(name)
    elif what == "later":
        ward.later(5.0 * number)
    elif what == "ask":
        ward.asked(ward.request(f"r{next(ward.numbers)}"))
    elif record.view is None:
        return
    elif what in ("sicken", "slow") and not apart:
        ward.sicken(name, Evidence.SLOW if what == "slow" else Evidence.FAILING, float(number))
    elif what == "well" and record.state is State.TRIAL:
        ward.is_well(name)
    elif what == "worse" and record.state is State.TRIAL:
        ward.stays_out(name)
    elif what == "untried" and record.trial:
        ward.list.untried(record.trial)


@given(st.lists(ACTS, min_size=20, max_size=80), st.integers(1, 6), st.sampled_from((0.0, 0.1, 0.3, 0.9)))
def test_whatever_comes_the_books_balance_and_the_pool_has_all_that_are_not_apart(
    acts: list[tuple[str, int]], workers: int, share: float
) -> None:
    names = [f"w{n}" for n in range(workers)]
    ward = Ward(*names, most_out=share)
    for what, number in acts:
        act(ward, what, names[number % workers], number)
        ward.check()
