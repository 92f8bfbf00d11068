"""Admission's promises: turns are fair, bounds hold, nothing is lost or served twice, refusals say when to return."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.core.admission import Admission, Ticket, Turned, TurnReason
from orchestrator.core.errors import ClusterFull, Overloaded
from orchestrator.core.fair_queue import MOST_IDLE
from orchestrator.core.spec import AdmissionSpec, TenantSpec

MODELS = ("m", "n")
TENANTS = ("", "gold", "small", "guest")


def ticket(name: str, tenant: str = "t", *, model: str = "m", tokens: int = 10, priority: int = 0, at: float = 0.0):
    return Ticket(name, model, tenant, priority, tokens, at)


def admission(requests: int = 1000, tokens: int = 10**9, **tenants: TenantSpec) -> Admission:
    return Admission(AdmissionSpec(requests, tokens, tenants=tenants))


def serve(admission: Admission, model: str = "m", now: float = 0.0) -> str | None:
    head = admission.next(model)
    if head is None:
        return None
    admission.admitted(head.request_id, now)
    return head.request_id


def serve_all(admission: Admission, model: str = "m") -> list[str]:
    served = []
    while name := serve(admission, model):
        served.append(name)
    return served


def flood(admission: Admission, tenant: str, count: int, **kwargs: int) -> list[Turned]:
    return [t for i in range(count) for t in admission.join(ticket(f"{tenant}{i}", tenant, **kwargs), float(i))]


class TestTurns:
    def test_within_a_tenant_by_priority_then_arrival(self) -> None:
        queue = admission()
        for name, priority in (("a", 5), ("b", 0), ("c", 5), ("d", -1)):
            queue.join(ticket(name, priority=priority), 0.0)
        assert serve_all(queue) == ["d", "b", "a", "c"]

    def test_priority_is_worth_nothing_between_tenants(self) -> None:
        queue = admission()
        flood(queue, "pushy", 3, priority=-1000)
        queue.join(ticket("patient", "calm", priority=1000), 1.0)
        assert serve_all(queue).index("patient") <= 1

    def test_a_flood_costs_a_newcomer_one_turn(self) -> None:
        queue = admission(requests=10_000)
        flood(queue, "flood", 5000)
        for _ in range(100):
            serve(queue)
        queue.join(ticket("late", "small"), 9.0)
        assert "late" in [serve(queue), serve(queue)]

    def test_weights_share_by_tokens(self) -> None:
        queue = admission(gold=TenantSpec(weight=3.0))
        flood(queue, "gold", 300, tokens=20)
        flood(queue, "guest", 300, tokens=10)
        served = [serve(queue) for _ in range(200)]
        gold = 20 * sum(name.startswith("gold") for name in served)
        guest = 10 * sum(name.startswith("guest") for name in served)
        assert gold / 3 == pytest.approx(guest, abs=20 / 3 + 10)

    def test_idle_tenants_save_nothing_up(self) -> None:
        queue = admission()
        flood(queue, "busy", 100)
        for _ in range(50):
            serve(queue)
        flood(queue, "back", 50)
        served = [serve(queue) for _ in range(40)]
        assert 19 <= sum(name.startswith("back") for name in served) <= 21

    def test_who_was_just_served_without_waiting_goes_second(self) -> None:
        queue = admission()
        queue.passed("served", "m", 10)
        queue.join(ticket("s", "served"), 0.0)
        queue.join(ticket("o", "other"), 0.0)
        assert serve_all(queue) == ["o", "s"]

    def test_what_was_served_while_nobody_waited_is_no_lasting_debt(self) -> None:
        queue = admission()
        queue.passed("once", "m", 1_000_000)
        queue.join(ticket("mine", "once"), 0.0)
        flood(queue, "other", 50)
        assert serve_all(queue).index("mine") <= 2

    def test_being_served_without_waiting_counts_however_long_a_tenant_was_away(self) -> None:
        queue = admission()
        queue.passed("rare", "m", 10)
        for _ in range(10):
            queue.passed("regular", "m", 100)
        queue.passed("rare", "m", 10)
        queue.join(ticket("r", "rare"), 0.0)
        queue.join(ticket("n", "new"), 0.0)
        assert serve_all(queue) == ["n", "r"]

    def test_who_asks_one_at_a_time_gets_no_more_than_a_share(self) -> None:
        queue = admission(requests=10_000)
        flood(queue, "flood", 1000, tokens=10)
        queue.join(ticket("large", "sly", tokens=1000), 0.0)
        while serve(queue) != "large":
            pass
        queue.join(ticket("small", "sly", tokens=1), 0.0)
        assert 99 <= serve_all(queue).index("small") <= 101

    def test_a_turn_out_of_order_moves_nobody_else_back(self) -> None:
        queue = admission(slow=TenantSpec(weight=0.01))
        flood(queue, "slow", 3)
        flood(queue, "t", 3)
        for name in ("slow0", "slow1"):  # the second long before its turn
            queue.admitted(name, 0.0)
            queue.check()
        queue.join(ticket("n0", "new"), 0.0)
        assert serve_all(queue) == ["t0", "n0", "t1", "t2", "slow2"]

    def test_models_have_their_own_turns(self) -> None:
        queue = admission()
        queue.join(ticket("a", model="m"), 0.0)
        queue.join(ticket("b", model="n"), 0.0)
        assert (queue.waiting("m"), queue.waiting("n"), len(queue)) == (1, 1, 2)
        assert serve_all(queue, "n") == ["b"]
        assert serve_all(queue, "m") == ["a"]

    def test_one_that_comes_back_is_first_and_not_charged_again(self) -> None:
        queue = admission()
        flood(queue, "t", 3)
        flood(queue, "u", 3)
        returning = ticket("t0", "t")
        assert serve(queue) == "t0"
        assert serve(queue) == "u0"
        queue.rejoin(returning)
        assert serve_all(queue) == ["t0", "t1", "u1", "t2", "u2"]

    def test_one_that_comes_back_is_never_turned_away(self) -> None:
        queue = admission(requests=2)
        flood(queue, "t", 2)
        first = serve(queue)
        queue.join(ticket("t2"), 3.0)
        queue.rejoin(ticket(first))
        assert len(queue) == 3
        (turned,) = queue.join(ticket("x", "small"), 4.0)
        assert turned.request_id == "t2"
        assert serve_all(queue) == ["x", first, "t1"]
        queue.check()


class TestBounds:
    def test_a_tenants_own_bound_is_its_own_fault(self) -> None:
        queue = admission(t=TenantSpec(max_queued_requests=1))
        queue.join(ticket("a"), 0.0)
        (turned,) = queue.join(ticket("b"), 0.0)
        assert (turned.request_id, turned.reason) == ("b", TurnReason.TENANT_REQUESTS)
        assert isinstance(turned.error, Overloaded)
        assert "your tenant" in turned.error.what
        assert queue.join(ticket("c", "someone else"), 0.0) == []

    def test_tenants_tokens_are_bounded_too(self) -> None:
        queue = admission(t=TenantSpec(max_queued_tokens=15))
        queue.join(ticket("a"), 0.0)
        (turned,) = queue.join(ticket("b"), 0.0)
        assert turned.reason is TurnReason.TENANT_TOKENS
        serve(queue)
        assert queue.join(ticket("b"), 0.0) == []

    def test_full_of_its_own_requests_is_full(self) -> None:
        queue = admission(requests=3)
        (turned,) = flood(queue, "t", 4)
        assert turned.request_id == "t3"
        assert isinstance(turned.error, ClusterFull)
        assert queue.turned_away["m", TurnReason.CLUSTER_REQUESTS] == 1

    def test_a_flood_gives_way_newest_and_least_urgent_first(self) -> None:
        queue = admission(requests=4)
        for name, priority in (("a", 1), ("b", 9), ("c", 9), ("d", 1)):
            queue.join(ticket(name, "flood", priority=priority), 0.0)
        (turned,) = queue.join(ticket("x", "small"), 1.0)
        assert (turned.request_id, turned.reason) == ("c", TurnReason.DISPLACED)
        assert isinstance(turned.error, Overloaded)
        assert serve_all(queue) == ["a", "x", "d", "b"]

    def test_a_share_is_where_giving_way_ends(self) -> None:
        queue = admission(requests=10, flood=TenantSpec(weight=4.0))
        flood(queue, "flood", 10)
        turned = flood(queue, "small", 10)
        kinds = [type(each.error) for each in turned]
        assert kinds == [Overloaded] * 2 + [ClusterFull] * 8
        assert queue.tenants()["flood"].requests == 8
        queue.check()

    def test_many_small_ones_give_way_to_a_large_one(self) -> None:
        queue = admission(tokens=100)
        flood(queue, "flood", 10)
        turned = queue.join(ticket("x", "small", tokens=35), 1.0)
        assert [each.request_id for each in turned] == ["flood9", "flood8", "flood7", "flood6"]
        assert queue.tenants()["small"].tokens == 35
        queue.check()

    def test_a_tenant_with_its_share_displaces_nobody_though_another_has_more(self) -> None:
        queue = admission(requests=12)
        flood(queue, "a", 7)
        flood(queue, "b", 4)
        flood(queue, "c", 1)
        (turned,) = queue.join(ticket("x", "b"), 1.0)
        assert turned.request_id == "x"

    def test_nobody_goes_where_that_would_not_be_enough(self) -> None:
        queue = admission(tokens=100)
        flood(queue, "flood", 10)
        (turned,) = queue.join(ticket("x", "small", tokens=101), 1.0)
        assert turned.request_id == "x"
        assert serve_all(queue) == [f"flood{i}" for i in range(10)]

    def test_equals_do_not_displace_each_other(self) -> None:
        queue = admission(requests=5)
        for i in range(5):
            queue.join(ticket(f"r{i}", f"tenant {i}"), 0.0)
        (turned,) = queue.join(ticket("x", "one more"), 0.0)
        assert turned.request_id == "x"

    def test_strangers_names_cost_bounded_memory(self) -> None:
        queue = admission()
        for i in range(10 * MOST_IDLE):
            queue.passed(f"stranger {i}", "m", 10)
            queue.check()
        for i in range(10 * MOST_IDLE):
            queue.join(ticket("a", f"stranger {i}"), 0.0)
            queue.join(ticket("b", f"stranger {i}"), 0.0)
            serve(queue)
            queue.drop("a")
            queue.drop("b")
        queue.check()
        assert not queue.tenants()


class TestRetryAfter:
    @staticmethod
    def after(queue: Admission, now: float) -> float:
        (turned,) = queue.join(ticket("late", "t"), now)
        assert turned.error.retry_after is not None
        return turned.error.retry_after

    def test_is_what_waits_over_the_pace(self) -> None:
        queue = admission(t=TenantSpec(max_queued_requests=30))
        flood(queue, "t", 30, tokens=100)
        for i in range(200):  # two a second
            serve(queue)
            queue.join(ticket(f"n{i}", tokens=100), 30.0 + i / 2)
        assert self.after(queue, 130.0) == pytest.approx(15.0, abs=1.0)

    def test_a_tenant_has_only_its_share_of_the_pace(self) -> None:
        queue = admission(t=TenantSpec(max_queued_requests=10))
        flood(queue, "u", 500)
        flood(queue, "t", 10)
        for i in range(100):
            served = serve(queue)
            queue.join(ticket(f"{served[0]} again {i}", served[0]), 500.0 + i / 2)
        assert self.after(queue, 550.0) == pytest.approx(10.0, abs=1.0)

    def test_nothing_moves_nothing_known_and_long_idle_times(self) -> None:
        queue = admission(t=TenantSpec(max_queued_requests=1))
        queue.join(ticket("a"), 0.0)
        assert self.after(queue, 0.1) == 5.0  # nothing known yet
        assert self.after(queue, 100.0) == 60.0  # nothing moves
        for i in range(20):
            serve(queue)
            queue.join(ticket(f"b{i}"), 101.0 + i)
        busy = self.after(queue, 122.0)
        serve(queue)
        queue.join(ticket("c"), 10_000.0)  # hours in which nobody waited say nothing of the pace
        assert self.after(queue, 10_000.5) == busy


class TestLikelyWait:
    """Nobody is refused for a wait that is not likely."""

    @staticmethod
    def waits(queue: Admission, now: float) -> float:
        queue.join(ticket(f"asks at {now}"), now)
        queue.drop(f"asks at {now}")
        return queue.wait_of(ticket("next"))

    def test_while_nobody_has_been_let_in_nothing_is_known(self) -> None:
        queue = admission()
        flood(queue, "t", 100)
        assert self.waits(queue, 120.0) == 0.0

    def test_the_time_before_the_first_one_is_let_in_is_no_part_of_the_pace(self) -> None:
        queue = admission()
        flood(queue, "t", 40)
        for number in range(10):  # two a second, at last
            serve(queue, now=60.0 + number / 2)
            self.waits(queue, 60.0 + number / 2)
        assert queue.wait_of(ticket("next")) == pytest.approx(15.5, rel=0.5)

    def test_long_requests_that_end_together_leave_the_pace_what_it_is(self) -> None:
        queue = admission()
        flood(queue, "t", 60)
        waits = []
        for second in range(60, 160):
            for _ in range(10 if second % 10 == 0 else 0):
                served = serve(queue, now=float(second))
                queue.join(ticket(f"{served}'", "t"), float(second))
            waits.append(self.waits(queue, second + 0.5))
        assert max(waits) < 2 * 61

    def test_what_was_seen_before_nobody_took_requests_says_nothing(self) -> None:
        queue = admission()
        flood(queue, "t", 50)
        for number in range(20):
            serve(queue, now=50.0 + number)
            self.waits(queue, 50.5 + number)
        assert queue.wait_of(ticket("next")) > 10.0
        queue.nobody_takes("m")
        assert self.waits(queue, 100.0) == 0.0


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 1000)), max_size=60),
    st.integers(0, 40),
)
def test_nobody_is_served_twice_before_a_newcomer(newcomers, others, served_before):
    """A tenant that has not been here waits for at most one request of each other tenant."""
    queue = admission()
    for i, (tenant, tokens) in enumerate(others):
        queue.join(ticket(f"{tenant}{i}", tenant, tokens=tokens), 0.0)
    for _ in range(served_before):
        serve(queue)
    for i, tokens in enumerate(newcomers):
        queue.join(ticket(f"new{i}", "new", tokens=tokens), 1.0)
    ahead = []
    while (name := serve(queue)) != "new0":
        ahead.append(name[0])
    assert len(ahead) == len(set(ahead))


ARRIVALS = {
    "tenant": st.sampled_from(TENANTS),
    "model": st.sampled_from(MODELS),
    "tokens": st.integers(1, 60),
    "priority": st.integers(-1, 1),
}


class Machine(RuleBasedStateMachine):
    """Any order of calls, beside a plain model of what has to wait and what each tenant was served."""

    @initialize(
        bounds=st.tuples(st.integers(1, 12), st.integers(20, 300)),
        limits=st.dictionaries(
            st.sampled_from(TENANTS[1:]),
            st.builds(
                TenantSpec,
                st.sampled_from([0.25, 1.0, 3.0]),
                st.none() | st.integers(1, 5),
                st.none() | st.integers(10, 100),
            ),
        ),
    )
    def begin(self, bounds: tuple[int, int], limits: dict[str, TenantSpec]) -> None:
        self.spec = AdmissionSpec(*bounds, tenants=limits)
        self.admission = Admission(self.spec)
        self.queued: dict[str, tuple[Ticket, tuple[bool, int, float, int]]] = {}
        self.away: list[Ticket] = []  # admitted, may come back
        self.count = 0
        self.largest: dict[tuple[str, str], float] = defaultdict(float)
        # For pairs of tenants that both wait: how far one is ahead of the other, since they do.
        self.ahead: dict[tuple[str, str, str], tuple[float, float, float]] = {}

    def weight(self, tenant: str) -> float:
        return self.spec.tenants.get(tenant, self.spec.default).weight

    def new_ticket(self, tenant: str, model: str, tokens: int, priority: int) -> Ticket:
        self.count += 1
        self.largest[model, tenant] = max(self.largest[model, tenant], tokens / self.weight(tenant))
        return Ticket(f"r{self.count}", model, tenant, priority, tokens, float(self.count))

    @rule(**ARRIVALS)
    def join(self, tenant: str, model: str, tokens: int, priority: int) -> None:
        newcomer = self.new_ticket(tenant, model, tokens, priority)
        turned = self.admission.join(newcomer, float(self.count))
        gone = {each.request_id for each in turned}
        assert len(gone) == len(turned)
        if newcomer.request_id in gone:
            assert len(turned) == 1, "who is turned away displaces nobody"
        else:
            self.queued[newcomer.request_id] = (newcomer, (True, priority, newcomer.arrived_at, self.count))
        for each in turned:
            assert 1.0 <= each.error.retry_after <= 60.0
            assert isinstance(each.error, Overloaded | ClusterFull)
            if each.request_id != newcomer.request_id:
                victim, (first_time, *_) = self.queued.pop(each.request_id)
                assert first_time
                assert victim.tenant != tenant

    @rule(model=st.sampled_from(MODELS))
    def serve(self, model: str) -> None:
        head = self.admission.next(model)
        mine = [entry for entry in self.queued.values() if entry[0].model == model]
        if head is None:
            assert not mine, "work conservation"
            return
        entry = self.queued.pop(head.request_id)
        assert entry[1] == min(rank for other, rank in mine if other.tenant == head.tenant)
        self.admission.admitted(head.request_id, 0.0)
        self.away.append(head)
        if entry[1][0]:
            self.account(model, head.tenant, head.tokens)

    @rule(**ARRIVALS)
    def pass_by(self, tenant: str, model: str, tokens: int, priority: int) -> None:
        if not self.admission.waiting(model):
            self.new_ticket(tenant, model, tokens, priority)
            self.admission.passed(tenant, model, tokens)

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.queued)))
        del self.queued[name]
        self.admission.drop(name)
        self.admission.drop(name)

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def rejoin(self, data: st.DataObject) -> None:
        back = self.away.pop(data.draw(st.integers(0, len(self.away) - 1)))
        self.count += 1
        self.queued[back.request_id] = (back, (False, back.priority, back.arrived_at, self.count))
        self.admission.rejoin(back)

    def account(self, model: str, tenant: str, tokens: int) -> None:
        for (of, one, other), (now, least, most) in self.ahead.items():
            if of == model and tenant in (one, other):
                moved = now + (1 if tenant == one else -1) * tokens / self.weight(tenant)
                self.ahead[of, one, other] = (moved, min(least, moved), max(most, moved))

    @invariant()
    def books_balance(self) -> None:
        self.admission.check()
        assert len(self.admission) == len(self.queued)
        by_model = {model: sum(t.model == model for t, _ in self.queued.values()) for model in MODELS}
        assert by_model == {model: self.admission.waiting(model) for model in MODELS}

    @invariant()
    def shares_are_fair(self) -> None:
        """Over any interval in which both wait: least and most of the difference are as far apart as it ever gets."""
        waiting = {(t.model, t.tenant) for t, _ in self.queued.values()}
        for model in MODELS:
            for one, other in combinations(TENANTS, 2):
                pair = (model, one, other)
                if not {(model, one), (model, other)} <= waiting:
                    self.ahead.pop(pair, None)
                    continue
                _, least, most = self.ahead.setdefault(pair, (0.0, 0.0, 0.0))
                assert most - least <= self.largest[model, one] + self.largest[model, other] + 1e-6


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestAnyOrder = Machine.TestCase
