"""Candidates on clocks of their own, with requests that are late, lost or carried out without an answer."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.election import Election, Record, Standing, Terms, Write

TERMS = Terms(duration=15.0, hold=10.0, retry=2.0)
DRIFT = 0.2  # of a clock's rate: (1 + DRIFT) / (1 - DRIFT) is duration / hold
PATIENCE = 3.0  # seconds by its own clock after which a candidate gives a request up


@dataclass
class Register:
    """What all write to: a write of another version than the one that there is fails."""

    record: Record | None = None
    version: int = 0

    def write(self, wish: Write) -> Record | None:
        if wish.version != (self.record.version if self.record else ""):
            return None
        self.version += 1
        self.record = Record(wish.holder, TERMS.duration, str(self.version), wish.transitions)
        return self.record


@dataclass
class Candidate:
    name: str
    rate: float
    offset: float
    election: Election
    alive: bool = True
    deaf: bool = False  # none of its requests is answered
    request: int = 0  # the newest; answers to others are not listened to
    believed: list[tuple[float, float]] = field(default_factory=list)  # in true time

    def clock(self, true: float) -> float:
        return self.offset + true * self.rate

    def note(self, true: float) -> None:
        """What it believes from now on, as far as it is known now."""
        until = (self.election._until - self.offset) / self.rate
        if self.election.standing(self.clock(true)) is Standing.HOLDING:
            self.believed.append((true, until))

    def stop(self, true: float) -> None:
        """It believes nothing any more."""
        self.believed = [(begin, min(end, true)) for begin, end in self.believed]


class World:
    """True time. Every request takes two delays: there and back; ``losses`` of both ways get lost."""

    def __init__(self, seed: int, rates: list[float], longest: float, losses: float) -> None:
        self.rng = random.Random(seed)
        self.longest, self.losses = longest, losses
        self.register = Register()
        self.now = 0.0
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self.all = [
            Candidate(name, rate, self.rng.uniform(0, 1000), Election(name, TERMS))
            for name, rate in zip("abc", rates, strict=False)
        ]
        for each in self.all:
            self.after(self.rng.uniform(0, TERMS.retry), lambda each=each: self.round(each))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), act))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        while self._heap and self._heap[0][0] <= until and not stop():
            self.now, _, act = heapq.heappop(self._heap)
            act()
        if not stop():
            self.now = until

    def round(self, each: Candidate) -> None:
        if not each.alive or each.election.standing(each.clock(self.now)) is Standing.DEPOSED:
            return
        if each.election.must_look:
            self.ask(each, lambda: self.register.record, lambda record: self.looked(each, record))
        else:
            self.decide(each)

    def looked(self, each: Candidate, record: Record | None) -> None:
        each.election.saw(record, each.clock(self.now))
        if each.election.standing(each.clock(self.now)) is Standing.DEPOSED:
            each.stop(self.now)
        self.decide(each)

    def decide(self, each: Candidate) -> None:
        wish = each.election.wish(each.clock(self.now))
        if wish is None:
            self.again(each)
            return
        sent = each.clock(self.now)

        def wrote(record: Record | None) -> None:
            if record is not None:
                each.election.wrote(record, sent)
                each.note(self.now)
            self.again(each)

        self.ask(each, lambda: self.register.write(wish), wrote)

    def again(self, each: Candidate) -> None:
        self.after(TERMS.retry / each.rate * self.rng.uniform(1.0, 1.2), lambda: self.round(each))

    def ask(
        self, each: Candidate, carry_out: Callable[[], Record | None], answer: Callable[[Record | None], None]
    ) -> None:
        each.request += 1
        number = each.request

        def arrive() -> None:
            result = carry_out()
            if self.rng.random() >= self.losses and not each.deaf:
                self.after(self.rng.uniform(0, self.longest), lambda: listened(result))

        def listened(result: Record | None) -> None:
            if each.alive and each.request == number:
                each.request += 1
                answer(result)

        def gave_up() -> None:
            if each.alive and each.request == number:
                each.request += 1
                self.again(each)

        if self.rng.random() >= (self.losses if not each.deaf else 0.9):
            self.after(self.rng.uniform(0, self.longest), arrive)
        self.after(PATIENCE / each.rate, gave_up)

    def kill(self, each: Candidate) -> None:
        each.alive = False
        each.stop(self.now)

    def resign(self, each: Candidate) -> None:
        wish = each.election.resign()
        self.kill(each)
        if wish is not None:
            self.after(self.rng.uniform(0, self.longest), lambda: self.register.write(wish))

    def holders(self) -> list[str]:
        """At this moment."""
        return [
            each.name
            for each in self.all
            if each.alive and each.election.standing(each.clock(self.now)) is Standing.HOLDING
        ]


def overlaps(world: World) -> list[tuple[str, str, float]]:
    spans = [(*span, each.name) for each in world.all for span in each.believed]
    return [
        (one[2], other[2], max(one[0], other[0]))
        for one, other in itertools.combinations(spans, 2)
        if one[2] != other[2] and max(one[0], other[0]) < min(one[1], other[1])
    ]


rates = st.lists(st.floats(1 - DRIFT, 1 + DRIFT), min_size=2, max_size=3)


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rates=rates,
    longest=st.sampled_from([0.0, 0.1, 2.0, 20.0]),
    losses=st.sampled_from([0.0, 0.0, 0.3, 0.8]),
    fate=st.sampled_from(["nothing", "dies", "resigns", "hears nothing"]),
)
def test_never_two_believe_that_they_hold_it(
    seed: int, rates: list[float], longest: float, losses: float, fate: str
) -> None:
    world = World(seed, rates, longest, losses)
    world.run(200.0)
    first = next((each for each in world.all if each.name in world.holders()), None)
    if first is not None and fate == "hears nothing":
        first.deaf = True
    elif first is not None and fate != "nothing":
        (world.kill if fate == "dies" else world.resign)(first)
    world.run(600.0)
    assert not overlaps(world)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), rates=rates, longest=st.floats(0.0, 0.5), losses=st.floats(0.0, 0.3))
def test_a_dead_holder_is_replaced_in_bounded_time_and_a_living_one_is_not(
    seed: int, rates: list[float], longest: float, losses: float
) -> None:
    world = World(seed, rates, longest, losses)
    world.run(3600.0, stop=lambda: bool(world.holders()))
    (holder,) = world.holders()
    world.losses = 0.0
    world.run(world.now + 100.0)
    assert world.holders() == [holder]
    world.kill(next(each for each in world.all if each.name == holder))
    slowest = 1 / (1 - DRIFT)
    died, rounds = world.now, 3 * (1.2 * TERMS.retry + PATIENCE) * slowest
    world.run(died + TERMS.duration * slowest + rounds, stop=lambda: bool(world.holders()))
    assert world.holders(), "nobody took it"


def test_the_bound_on_clocks_is_the_one_that_the_times_allow() -> None:
    """A holder whose clock is slow and one who waits whose clock is fast, further apart than that: two would hold."""
    pair = [1 - DRIFT - 0.05, 1 + DRIFT + 0.05]
    found = 0
    for seed in range(200):
        world = World(seed, pair, 0.0, 0.0)
        world.run(30.0)
        world.losses = 1.0  # the holder hears nothing any more; who waits is asked by hand
        holder, other = sorted(world.all, key=lambda each: each.name not in world.holders())
        other.election.saw(world.register.record, other.clock(world.now))
        world.run(world.now + TERMS.duration / other.rate)
        wish = other.election.wish(other.clock(world.now))
        found += wish is not None and holder.election.standing(holder.clock(world.now)) is Standing.HOLDING
    assert found, "the simulation can't tell"


A = Record("a", 15.0, "7")


def test_who_comes_to_another_ones_record_waits_from_when_it_saw_it() -> None:
    mine = Election("b", TERMS)
    assert mine.standing(0.0) is Standing.ASKING
    mine.saw(A, 100.0)
    assert mine.standing(100.0) is Standing.WAITING
    assert mine.wish(114.9) is None
    mine.saw(replace(A, version="8"), 114.9)
    assert mine.rival_lives
    assert mine.wish(129.8) is None
    mine.saw(replace(A, version="8"), 129.8)
    assert mine.wish(129.9) == Write("b", "8", 1, True)


def test_one_that_was_given_back_is_taken_at_once() -> None:
    mine = Election("b", TERMS)
    mine.saw(A, 0.0)
    mine.saw(Record("", 15.0, "8", 3), 1.0)
    assert mine.wish(1.0) == Write("b", "8", 4, True)


def test_the_same_identity_goes_on_at_once() -> None:
    mine = Election("a", TERMS)
    mine.saw(A, 0.0)
    assert mine.wish(0.0) == Write("a", "7", 0, False)


def test_a_record_that_somebody_deleted_is_not_taken_from_its_living_holder() -> None:
    mine = Election("b", TERMS)
    mine.saw(A, 0.0)
    mine.saw(None, 1.0)
    assert mine.wish(14.9) is None
    assert mine.wish(15.0) == Write("b", "", 0, True)


def test_belief_is_counted_from_when_the_renewal_was_sent() -> None:
    mine = Election("a", TERMS)
    mine.saw(None, 0.0)
    assert mine.wish(0.0) is not None
    mine.wrote(A, 0.0)
    assert mine.standing(9.9) is Standing.HOLDING
    assert mine.standing(10.0) is Standing.UNSURE
    assert mine.wish(10.0) == Write("a", "7", 0, False)
    mine.wrote(replace(A, version="8"), 10.0)
    assert mine.standing(19.9) is Standing.HOLDING


def test_who_finds_another_in_its_place_is_deposed_for_good() -> None:
    mine = Election("a", TERMS)
    mine.saw(None, 0.0)
    assert mine.wish(0.0) is not None
    mine.wrote(A, 0.0)
    assert mine.wish(5.0) is not None
    mine.saw(Record("b", 15.0, "9"), 20.0)
    assert mine.standing(20.0) is Standing.DEPOSED
    mine.saw(Record("", 15.0, "10"), 21.0)
    assert mine.standing(21.0) is Standing.DEPOSED
    assert mine.wish(21.0) is None


def test_after_a_write_without_an_answer_it_looks_before_it_writes_again() -> None:
    mine = Election("a", TERMS)
    mine.saw(None, 0.0)
    assert mine.wish(0.0) is not None
    assert mine.must_look
    assert mine.wish(1.0) is None


def test_a_write_without_an_answer_that_was_carried_out_is_no_other_ones() -> None:
    mine = Election("a", TERMS)
    mine.saw(None, 0.0)
    assert mine.wish(0.0) is not None
    mine.wrote(A, 0.0)
    assert mine.wish(2.0) is not None
    mine.saw(replace(A, version="8"), 6.0)
    assert mine.standing(6.0) is Standing.HOLDING
    assert mine.wish(6.0) == Write("a", "8", 0, False)


@pytest.mark.parametrize("held", [True, False])
def test_only_a_holder_has_something_to_give_back(held: bool) -> None:
    mine = Election("a", TERMS)
    mine.saw(A if held else Record("b", 15.0, "7"), 0.0)
    if held:
        assert mine.wish(0.0) is not None
        mine.wrote(replace(A, version="8"), 0.0)
    assert mine.resign() == (Write("", "8", 0, False) if held else None)
    assert mine.standing(0.1) is not Standing.HOLDING


def test_one_that_gave_it_back_is_no_rival_any_more() -> None:
    mine = Election("b", TERMS)
    mine.saw(A, 0.0)
    mine.saw(replace(A, version="8"), 2.0)
    assert mine.rival_lives
    mine.saw(Record("", 15.0, "9"), 4.0)
    assert not mine.rival_lives
