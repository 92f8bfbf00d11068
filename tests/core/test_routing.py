"""Routing: who may be chosen at all, whether a prompt is computed apart or in place, and that chance is the seed's."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import policies
from orchestrator.core.candidates import BACKLOG_TOKENS, KV_FULL, LEASE_SECONDS, SEATS
from orchestrator.core.decision import CachedBy, Decision, Rule, Wait
from orchestrator.core.fleet import Fleet, WorkerView
from orchestrator.core.routing import Router, release_through
from orchestrator.core.session import Session
from orchestrator.core.spec import PrefillPlace, Role, RoutingSpec
from orchestrator.core.types import Load
from tests.core.support import FACTS, worker

NAMES = sorted(policies.POLICIES)
NOW = 100.0
LONG = 4_000  # tokens


def session(tokens: int = 200, **about: Any) -> Session:
    blocks = about.pop("blocks", range(1_000, 1_000 + tokens // FACTS.block_size))
    flags = {name: about.pop(name) for name in ("last_attempt", "prefill_worker") if name in about}
    made = Session("r", "m", tokens, NOW, NOW + 30, blocks=blocks, **about)
    for name, value in flags.items():
        setattr(made, name, value)
    return made


def decide(fleet: Fleet, asked: Session | None = None, *, seed: int = 0, **spec: Any) -> Decision | Wait:
    return Router(RoutingSpec(**spec)).decide(asked or session(), fleet, Random(seed), NOW)


def decided(fleet: Fleet, asked: Session | None = None, *, seed: int = 0, **spec: Any) -> Decision:
    decision = decide(fleet, asked, seed=seed, **spec)
    assert isinstance(decision, Decision), decision
    return decision


def join(fleet: Fleet, worker_id: str, role: Role, model: str = "m", **facts: Any) -> WorkerView:
    view = fleet.up(worker(worker_id, role, model, **{"kv_blocks_total": 1_000, **facts}), NOW)
    fleet.reported(worker_id, Load(kv_blocks_total=1_000), 0, NOW)
    return view


def fill(fleet: Fleet, worker_id: str, requests: int, tokens: int = 0, blocks: int = 1) -> None:
    view = fleet.get(worker_id)
    assert view is not None
    for number in range(requests):
        fleet.claim(view, f"{worker_id} {number}", tokens, blocks)


@pytest.fixture
def pair() -> Fleet:
    """One prefill and one decode worker, idle."""
    fleet = Fleet()
    join(fleet, "p", Role.PREFILL)
    join(fleet, "d", Role.DECODE)
    return fleet


# ---- who may be chosen

CONDITIONS: dict[str, Callable[[Fleet, WorkerView], object]] = {
    "fine": lambda fleet, view: None,
    "busy but fine": lambda fleet, view: fill(fleet, view.info.worker_id, 3, 100),
    "draining": lambda fleet, view: fleet.drain(view.info.worker_id),
    "silent": lambda fleet, view: setattr(view, "heard_at", NOW - LEASE_SECONDS - 0.1),
    "without the adapter": lambda fleet, view: setattr(view, "adapters", frozenset({"another"})),
    "has said it is full": lambda fleet, view: setattr(view, "busy_until", NOW + 0.1),
    "no seat": lambda fleet, view: fill(fleet, view.info.worker_id, int(FACTS.max_num_seqs * SEATS)),
    "no KV room": lambda fleet, view: fill(fleet, view.info.worker_id, 1, blocks=990),
    "no KV room, it says": lambda fleet, view: fleet.reported(view.info.worker_id, Load(1, 0, 990, 1_000), 0, NOW),
    "a long backlog": lambda fleet, view: fill(fleet, view.info.worker_id, 2, 100_000),
}
UNFIT = [name for name in CONDITIONS if name not in ("fine", "busy but fine")]
OF_NO_USE = {"draining", "silent", "without the adapter"}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), policy=st.sampled_from(NAMES), seed=st.integers(0, 99))
def test_only_fit_workers_are_chosen_and_one_is_wherever_there_is_one(
    data: st.DataObject, policy: str, seed: int
) -> None:
    fleet, states = Fleet(), {}
    for number in range(data.draw(st.integers(0, 40))):
        name, model = f"w{number}", data.draw(st.sampled_from(["m", "m", "other"]))
        view = join(fleet, name, Role.SERVE, model)
        state = data.draw(st.sampled_from(list(CONDITIONS)))
        CONDITIONS[state](fleet, view)
        states[name] = state if model == "m" else "of another model"
    asked = session(adapter="french", affinity=data.draw(st.sampled_from(["", "chat"])))
    decision = decide(fleet, asked, policy=policy, seed=seed)
    fit = {name for name, state in states.items() if state in ("fine", "busy but fine")}
    ours = [state for state in states.values() if state != "of another model"]
    if isinstance(decision, Decision):
        assert decision.decode in fit
        assert decision.on_decode is not None
        assert 0.0 <= decision.on_decode.score <= 1.0
    elif decision is Wait.NO_WORKER:
        assert set(ours) <= OF_NO_USE
    else:
        assert not fit
        assert set(ours) - OF_NO_USE


@pytest.mark.parametrize("role", [Role.SERVE, Role.DECODE, Role.PREFILL])
def test_an_idle_worker_takes_what_is_larger_than_its_bounds(role: Role) -> None:
    fleet = Fleet()
    for each in {role, Role.DECODE} if role is not Role.SERVE else {role}:
        join(fleet, each.value, each, max_num_seqs=1)
    huge = session(FACTS.block_size * 2_000, blocks=())
    assert isinstance(decide(fleet, huge, prefill=PrefillPlace.APART), Decision)


def test_a_queue_where_the_prompt_is_cached_may_be_as_much_longer_as_that_saves() -> None:
    fleet = Fleet()
    view = join(fleet, "w", Role.SERVE)
    fill(fleet, "w", 2, 2 * BACKLOG_TOKENS)
    assert decide(fleet, session(LONG)) is Wait.FULL
    fleet.index("m").changed(view.slot, stored=range(1_000, 1_250))
    assert isinstance(decide(fleet, session(LONG)), Decision)


def test_kv_room_is_kept_for_the_whole_prompt() -> None:
    fleet = Fleet()
    join(fleet, "w", Role.SERVE)
    fill(fleet, "w", 1, blocks=500)
    room = int(1_000 * KV_FULL - 500) * FACTS.block_size
    assert isinstance(decide(fleet, session(room, blocks=())), Decision)
    assert decide(fleet, session(room + FACTS.block_size, blocks=())) is Wait.FULL


def test_in_a_large_pool_that_is_nearly_full_a_second_look_finds_room() -> None:
    fleet = Fleet()
    for number in range(400):
        join(fleet, f"w{number}", Role.SERVE)
        if number % 20:
            fill(fleet, f"w{number}", 10)
    found = [decide(fleet, session(blocks=()), seed=seed) for seed in range(50)]
    assert sum(isinstance(decision, Decision) for decision in found) >= 45
    assert all(int(one.decode[1:]) % 20 == 0 for one in found if isinstance(one, Decision))


@pytest.mark.parametrize("policy", NAMES)
def test_the_same_seed_chooses_the_same(policy: str) -> None:
    def run(seed: int) -> list[str]:
        fleet, rng, router = Fleet(), Random(seed), Router(RoutingSpec(policy))
        for number in range(60):
            join(fleet, f"w{number}", Role.SERVE)
        found = []
        for number in range(40):
            asked = session(affinity=f"chat {number % 7}", adapter=f"adapter {number % 3}")
            decision = router.decide(asked, fleet, rng, NOW)
            assert isinstance(decision, Decision)
            view = fleet.get(decision.decode)
            assert view is not None
            fleet.claim(view, f"r{number}", 200, 13)
            found.append(decision.decode)
        return found

    assert run(1) == run(1)
    if policy in ("cost", "least_load", "power_of_two", "prefix_aware", "prefix_and_load"):
        assert run(1) != run(2)  # ties go by chance


def test_ties_are_broken_evenly() -> None:
    fleet = Fleet()
    for number in range(4):
        join(fleet, f"w{number}", Role.SERVE)
    chosen = [decided(fleet, seed=seed).decode for seed in range(400)]
    assert all(60 < chosen.count(f"w{number}") < 140 for number in range(4))


def test_turns_go_on_after_one_that_has_no_room() -> None:
    fleet, router = Fleet(), Router(RoutingSpec("round_robin"))
    for number in range(4):
        join(fleet, f"w{number}", Role.SERVE)
    fill(fleet, "w1", 10)
    turns = [router.decide(session(), fleet, Random(0), NOW) for _ in range(6)]
    assert [one.decode for one in turns if isinstance(one, Decision)] == ["w0", "w2", "w3", "w0", "w2", "w3"]


# ---- what a decision says


def test_a_decision_says_what_it_was_made_of() -> None:
    fleet = Fleet()
    view = join(fleet, "w", Role.SERVE)
    join(fleet, "other", Role.SERVE)
    fleet.index("m").changed(view.slot, stored=range(1_000, 1_010))
    fill(fleet, "w", 1, 40)
    decision = decided(fleet)
    choice = decision.on_decode
    assert choice is not None
    assert (choice.worker_id, choice.candidates, choice.eligible, choice.depth) == ("w", 2, 2, 1)
    assert (choice.cached_tokens, choice.cached_by) == (160, CachedBy.EVENTS)
    assert choice.wait_seconds == view.wait_seconds > 0
    assert choice.work_seconds == view.cost.prefill_seconds(40, 160)
    assert (decision.rule, decision.policy) == (Rule.ONE_POOL, "cost")


def test_how_cached_tokens_are_known() -> None:
    fleet = Fleet()
    join(fleet, "w", Role.SERVE, kv_events=False)
    assert decided(fleet).on_decode.cached_by is CachedBy.ROUTED  # type: ignore[union-attr]
    assert decided(fleet, session(blocks=())).on_decode.cached_by is CachedBy.UNKNOWN  # type: ignore[union-attr]


def test_a_prompt_that_is_all_cached_has_its_last_token_computed() -> None:
    fleet = Fleet()
    view = join(fleet, "w", Role.SERVE)
    fleet.index("m").changed(view.slot, stored=range(1_000, 1_010))
    assert decided(fleet, session(160)).on_decode.cached_tokens == 144  # type: ignore[union-attr]


# ---- apart or in place


def cache(fleet: Fleet, worker_id: str, tokens: int) -> None:
    view = fleet.get(worker_id)
    assert view is not None
    fleet.index("m").changed(view.slot, stored=range(1_000, 1_000 + tokens // FACTS.block_size))


class TestApartOrInPlace:
    def test_a_short_prompt_is_computed_where_it_decodes(self, pair: Fleet) -> None:
        decision = decided(pair, session(20))
        assert (decision.decode, decision.prefill, decision.rule) == ("d", None, Rule.CHEAPER_IN_PLACE)
        assert decision.in_place_seconds < decision.apart_seconds  # type: ignore[operator]

    def test_a_long_prompt_spares_those_that_decode(self, pair: Fleet) -> None:
        fill(pair, "d", 4)
        decision = decided(pair, session(LONG))
        assert (decision.decode, decision.prefill, decision.rule) == ("d", "p", Rule.SPARES_DECODE)
        assert decision.on_prefill is not None

    def test_a_long_prompt_that_decode_has_in_its_cache_is_not_moved(self, pair: Fleet) -> None:
        fill(pair, "d", 4)
        cache(pair, "d", LONG)
        decision = decided(pair, session(LONG))
        assert (decision.prefill, decision.rule) == (None, Rule.CHEAPER_IN_PLACE)

    def test_one_that_prefill_has_in_its_cache_is_fetched_from_there(self, pair: Fleet) -> None:
        cache(pair, "p", LONG)
        decision = decided(pair, session(LONG))
        assert (decision.prefill, decision.rule) == ("p", Rule.CHEAPER_APART)
        assert decision.apart_seconds < decision.in_place_seconds  # type: ignore[operator]

    def test_a_queue_at_prefill_speaks_for_in_place(self, pair: Fleet) -> None:
        fill(pair, "d", 4)
        fill(pair, "p", 1, 4_500)
        assert decided(pair, session(LONG)).rule is Rule.CHEAPER_IN_PLACE

    def test_a_queue_at_decode_speaks_for_apart(self, pair: Fleet) -> None:
        fill(pair, "d", 1, 2_000)
        assert decided(pair, session(20)).rule is Rule.CHEAPER_APART

    def test_a_slow_network_speaks_for_in_place(self, pair: Fleet) -> None:
        fill(pair, "d", 8)
        assert decided(pair, session(LONG)).prefill == "p"
        for _ in range(50):
            pair.get("d").cost.saw_transfer(LONG, 2.0)  # type: ignore[union-attr]
        assert decided(pair, session(LONG)).rule is Rule.CHEAPER_IN_PLACE

    def test_a_decode_worker_s_queue_has_its_bound_even_where_apart_takes_longer(self, pair: Fleet) -> None:
        for _ in range(50):
            pair.get("d").cost.saw_transfer(LONG, 90.0)  # type: ignore[union-attr]
        fill(pair, "d", 1, BACKLOG_TOKENS)
        assert decided(pair, session(LONG)).rule is Rule.CHEAPER_IN_PLACE
        fill(pair, "d", 2, 10 * BACKLOG_TOKENS)
        assert decided(pair, session(LONG)).prefill == "p"

    def test_both_times_are_told(self, pair: Fleet) -> None:
        decision = decided(pair, session(LONG))
        d, p = pair.get("d"), pair.get("p")
        assert d is not None
        assert p is not None
        assert decision.in_place_seconds == d.cost.prefill_seconds(LONG)
        assert decision.apart_seconds == p.cost.prefill_seconds(LONG) + d.cost.transfer_seconds(LONG)
        assert "apart" in decision.reasons[-1]

    @pytest.mark.parametrize("tokens", [20, LONG])
    def test_the_configuration_can_say(self, pair: Fleet, tokens: int) -> None:
        apart = decided(pair, session(tokens), prefill=PrefillPlace.APART)
        assert (apart.prefill, apart.rule) == ("p", Rule.CONFIGURED_APART)
        in_place = decided(pair, session(tokens), prefill=PrefillPlace.IN_PLACE)
        assert (in_place.prefill, in_place.rule) == (None, Rule.CONFIGURED_IN_PLACE)

    @pytest.mark.parametrize("place", list(PrefillPlace))
    def test_some_have_no_choice(self, pair: Fleet, place: PrefillPlace) -> None:
        assert decided(pair, session(LONG, local_only=True), prefill=place).rule is Rule.LOCAL_ONLY
        assert decided(pair, session(LONG, last_attempt=True), prefill=place).rule is Rule.LAST_ATTEMPT

    @pytest.mark.parametrize("gone", ["draining", "silent"])
    def test_without_a_prefill_worker_in_place_even_where_apart_is_configured(self, pair: Fleet, gone: str) -> None:
        view = pair.get("p")
        assert view is not None
        CONDITIONS[gone](pair, view)
        decision = decided(pair, session(LONG), prefill=PrefillPlace.APART)
        assert (decision.prefill, decision.rule) == (None, Rule.NO_PREFILL_WORKER)

    def test_full_prefill_workers_are_waited_for_only_where_apart_is_configured(self, pair: Fleet) -> None:
        fill(pair, "p", 2, 100_000)
        assert decide(pair, session(LONG), prefill=PrefillPlace.APART) is Wait.FULL
        assert decided(pair, session(LONG)).rule is Rule.PREFILL_FULL
        fill(pair, "d", 2, 100_000)
        assert decide(pair, session(LONG)) is Wait.FULL

    def test_a_prompt_that_others_compute_is_no_part_of_the_decode_worker_s_backlog(self, pair: Fleet) -> None:
        fill(pair, "d", 2, 100_000)
        assert decided(pair, session(LONG)).prefill == "p"

    def test_no_decode_worker_no_decision(self, pair: Fleet) -> None:
        pair.drain("d")
        assert decide(pair) is Wait.NO_WORKER


# ---- later on


def test_a_lost_reservation_is_chosen_again_and_prefill_kept(pair: Fleet) -> None:
    join(pair, "d2", Role.DECODE)
    pair.down("d")
    router, asked = Router(RoutingSpec()), session(LONG, prefill_worker="p")
    decision = router.hand_over(asked, pair, Random(0), NOW)
    assert isinstance(decision, Decision)
    assert (decision.decode, decision.prefill, decision.rule) == ("d2", "p", Rule.RESERVED_LOST)
    pair.down("d2")
    assert router.hand_over(asked, pair, Random(0), NOW) is Wait.NO_WORKER


def test_a_release_goes_through_the_least_loaded_decode_worker(pair: Fleet) -> None:
    join(pair, "d2", Role.DECODE)
    fill(pair, "d", 1)
    assert release_through("m", "p", pair, Random(0)) == "d2"
    for name in ("d", "d2"):
        pair.drain(name)
    assert release_through("m", "p", pair, Random(0)) is None


# ---- engines of two versions


FORMATS = st.lists(st.sampled_from(["one", "two"]), min_size=1, max_size=20)


@settings(max_examples=200)
@given(FORMATS, FORMATS, st.sampled_from([20, LONG]), st.sampled_from(list(PrefillPlace)), st.integers(0, 9))
def test_what_cant_hand_kv_over_is_never_paired(
    prefill: list[str], decode: list[str], tokens: int, place: PrefillPlace, seed: int
) -> None:
    fleet = Fleet()
    for role, formats in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
        for number, kv_format in enumerate(formats):
            join(fleet, f"{role}-{number}", role, kv_format=kv_format)
            fill(fleet, f"{role}-{number}", (seed + number) % 3)

    def format_of(worker_id: str) -> str:
        view = fleet.get(worker_id)
        assert view is not None
        assert view.info.facts is not None
        return view.info.facts.kv_format

    decision = decided(fleet, session(tokens), seed=seed, prefill=place)
    if decision.prefill is not None:
        assert format_of(decision.prefill) == format_of(decision.decode)
    elif place is PrefillPlace.APART:
        assert decision.rule is Rule.NO_PARTNER
        assert format_of(decision.decode) not in prefill
    source = f"{Role.PREFILL}-{seed % len(prefill)}"
    asked = session(tokens, prefill_worker=source)
    other = Router(RoutingSpec(prefill=place)).hand_over(asked, fleet, Random(seed), NOW)
    if isinstance(other, Decision):
        assert format_of(other.decode) == format_of(source)
    else:
        assert format_of(source) not in decode
    through = release_through("m", source, fleet, Random(seed))
    assert through is None or format_of(through) == format_of(source)
