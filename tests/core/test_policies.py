"""Policies: what each prefers, what it never does, how few sessions move, and what a configuration may ask for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import policies
from orchestrator.core.candidates import cached_tokens
from orchestrator.core.errors import ConfigError
from orchestrator.core.fleet import Claim, Fleet, WorkerView
from orchestrator.core.policies import Ask
from orchestrator.core.session import Session
from orchestrator.core.spec import Role
from orchestrator.core.types import Load
from tests.core.support import worker

NAMES = sorted(policies.POLICIES)
DOCUMENT = tuple(range(1000, 1020))  # block hashes


def fleet_of(count: int) -> Fleet:
    fleet = Fleet()
    for number in range(count):
        fleet.up(worker(f"w{number}", Role.SERVE), 0.0)
    return fleet


def view_of(fleet: Fleet, worker_id: str) -> WorkerView:
    view = fleet.get(worker_id)
    assert view is not None
    return view


def give(fleet: Fleet, worker_id: str, requests: int, tokens: int = 0) -> list[Claim]:
    view = view_of(fleet, worker_id)
    return [fleet.claim(view, f"r{len(view.claims)}", tokens, 1) for _ in range(requests)]


def ask(fleet: Fleet, tokens: int = 320, seed: int = 0, now: float = 0.0, **session: object) -> Ask:
    request = Session("r", "m", tokens, now, now + 30, blocks=DOCUMENT[: tokens // 16], **session)  # type: ignore[arg-type]
    return Ask(request, Role.SERVE, None, fleet.index("m").match(request.blocks), Random(seed), now)


def scores(policy: policies.Policy, fleet: Fleet, asked: Ask) -> dict[str, float]:
    views = policy.narrow(fleet.pool("m", Role.SERVE), asked)
    cached = cached_tokens(views, asked.session, asked.matches)
    given = policy.score(views, cached, asked)
    return {view.info.worker_id: score for view, score in zip(views, given, strict=True)}


def best(policy: policies.Policy, fleet: Fleet, asked: Ask) -> str:
    found = scores(policy, fleet, asked)
    return max(found, key=lambda worker_id: found[worker_id])


@settings(max_examples=80, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES), size=st.sampled_from([1, 2, 7, 40]))
def test_scores_are_from_0_to_1_and_one_a_candidate(data: st.DataObject, name: str, size: int) -> None:
    fleet = fleet_of(size)
    for view in fleet:
        give(fleet, view.info.worker_id, data.draw(st.integers(0, 12)), data.draw(st.sampled_from([0, 7, 100_000])))
        used = data.draw(st.integers(0, 120))
        fleet.reported(
            view.info.worker_id, Load(3, data.draw(st.integers(0, 9)), used, 100), 0, data.draw(st.floats(0, 900))
        )
        fleet.index("m").changed(view.slot, stored=DOCUMENT[: data.draw(st.integers(0, 20))])
        view.cost.saw_prefill(100, data.draw(st.sampled_from([1e-4, 1.0, 90.0])))
    policy = policies.build(name, {})
    tokens = data.draw(st.integers(1, 330))
    affinity, adapter = data.draw(st.sampled_from([("", ""), ("chat 7", "french")]))
    asked = ask(fleet, tokens, data.draw(st.integers(0, 99)), affinity=affinity, adapter=adapter)
    found = scores(policy, fleet, asked)
    assert found
    assert all(0.0 <= score <= 1.0 for score in found.values()), found


@pytest.mark.parametrize("name", NAMES)
def test_of_a_large_pool_few_are_looked_at(name: str) -> None:
    fleet = fleet_of(2_000)
    for slot in range(0, 2_000, 3):
        fleet.index("m").changed(slot, stored=DOCUMENT)
    asked = ask(fleet, affinity="chat 7", adapter="french")
    assert len(scores(policies.build(name, {}), fleet, asked)) <= 32


@pytest.mark.parametrize("name", ["cost", "prefix_aware", "prefix_and_load"])
def test_in_a_large_pool_the_one_that_holds_the_prompt_is_found(name: str) -> None:
    fleet = fleet_of(2_000)
    for slot in range(0, 2_000, 3):
        fleet.index("m").changed(slot, stored=DOCUMENT[:2])  # what all prompts begin with
    fleet.index("m").changed(1_234, stored=DOCUMENT)
    for seed in range(20):
        assert best(policies.build(name, {}), fleet, ask(fleet, seed=seed)) == "w1234"


def test_where_many_hold_the_same_each_is_found_at_times() -> None:
    fleet, policy = fleet_of(200), policies.build("prefix_aware", {})
    for slot in range(0, 200, 2):
        fleet.index("m").changed(slot, stored=DOCUMENT)
    assert len({best(policy, fleet, ask(fleet, seed=seed)) for seed in range(200)}) > 50


class TestRoundRobin:
    @pytest.mark.parametrize("size", [1, 3, 8, 20])
    def test_each_has_its_turn(self, size: int) -> None:
        fleet, policy, turns = fleet_of(size), policies.build("round_robin", {}), []
        for _ in range(3 * size):
            turns.append(best(policy, fleet, ask(fleet)))
            policy.chosen(view_of(fleet, turns[-1]))
        assert turns == 3 * [f"w{number}" for number in range(size)]

    def test_one_that_was_passed_over_costs_the_next_no_turn(self) -> None:
        fleet, policy = fleet_of(4), policies.build("round_robin", {})
        policy.chosen(view_of(fleet, "w2"))  # w0 and w1 were full
        assert best(policy, fleet, ask(fleet)) == "w3"


class TestLeastLoad:
    def test_fewest_requests_then_emptiest_cache(self) -> None:
        fleet, policy = fleet_of(3), policies.build("least_load", {})
        give(fleet, "w0", 2)
        fleet.reported("w1", Load(0, 0, 50, 100), 0, 0.0)
        fleet.reported("w2", Load(0, 0, 40, 100), 0, 0.0)
        assert best(policy, fleet, ask(fleet)) == "w2"
        give(fleet, "w2", 1)
        assert best(policy, fleet, ask(fleet)) == "w1"


class TestPowerOfTwo:
    def test_draws_as_many_as_it_is_told_and_all_in_time(self) -> None:
        fleet = fleet_of(30)
        for choices in (2, 5):
            policy = policies.build("power_of_two", {"choices": choices})
            drawn = [scores(policy, fleet, ask(fleet, seed=seed)) for seed in range(200)]
            assert {len(each) for each in drawn} == {choices}
            assert len({name for each in drawn for name in each}) == 30

    def test_never_takes_the_fuller_of_the_two(self) -> None:
        fleet, policy = fleet_of(2), policies.build("power_of_two", {})
        give(fleet, "w1", 1)
        assert {best(policy, fleet, ask(fleet, seed=seed)) for seed in range(20)} == {"w0"}


class TestPrefixes:
    def test_prefix_aware_takes_the_longest_match_whatever_the_load(self) -> None:
        fleet, policy = fleet_of(3), policies.build("prefix_aware", {})
        fleet.index("m").changed(0, stored=DOCUMENT[:19])
        fleet.index("m").changed(1, stored=DOCUMENT[:10])
        give(fleet, "w0", 9)
        assert best(policy, fleet, ask(fleet)) == "w0"

    def test_of_equal_matches_the_least_loaded(self) -> None:
        fleet, policy = fleet_of(3), policies.build("prefix_aware", {})
        for slot in (0, 1):
            fleet.index("m").changed(slot, stored=DOCUMENT)
        give(fleet, "w0", 1)
        assert best(policy, fleet, ask(fleet)) == "w1"

    def test_weights_decide_between_prefix_and_load(self) -> None:
        fleet = fleet_of(2)
        fleet.index("m").changed(0, stored=DOCUMENT[:10])
        give(fleet, "w0", 4)
        assert best(policies.build("prefix_and_load", {"prefix": 4}), fleet, ask(fleet)) == "w0"
        assert best(policies.build("prefix_and_load", {"load": 4}), fleet, ask(fleet)) == "w1"


class TestCost:
    def test_a_prompt_goes_where_its_prefix_is(self) -> None:
        fleet, policy = fleet_of(4), policies.build("cost", {})
        fleet.index("m").changed(2, stored=DOCUMENT[:10])
        give(fleet, "w2", 1)
        assert best(policy, fleet, ask(fleet)) == "w2"

    def test_until_the_queue_there_costs_more_than_it_saves(self) -> None:
        fleet, policy = fleet_of(4), policies.build("cost", {})
        fleet.index("m").changed(2, stored=DOCUMENT[:10])
        give(fleet, "w2", 4, tokens=2_000)
        assert best(policy, fleet, ask(fleet)) != "w2"

    def test_a_slow_worker_is_left_to_what_others_have_no_time_for(self) -> None:
        fleet, policy = fleet_of(3), policies.build("cost", {})
        for _ in range(40):
            for view in fleet:
                view.cost.saw_prefill(1_000, 1.0 if view.info.worker_id == "w0" else 0.2)
        assert best(policy, fleet, ask(fleet)) in ("w1", "w2")
        for other in ("w1", "w2"):
            give(fleet, other, 3, tokens=2_000)
        assert best(policy, fleet, ask(fleet)) == "w0"

    def test_what_nobody_has_goes_to_who_was_least_busy(self) -> None:
        fleet, policy = fleet_of(3), policies.build("cost", {})
        for worker_id, seconds in (("w0", 50), ("w1", 10), ("w2", 30)):
            fleet.reported(worker_id, Load(), 0, 100.0)
            (claim,) = give(fleet, worker_id, 1)
            fleet.reported(worker_id, Load(), 0, 100.0 + seconds)
            fleet.left(claim)
            fleet.reported(worker_id, Load(), 0, 200.0)
        assert best(policy, fleet, ask(fleet, now=200.0)) == "w1"

    def test_sequences_that_decode_there_count(self) -> None:
        fleet, policy = fleet_of(2), policies.build("cost", {})
        give(fleet, "w0", 6)
        assert best(policy, fleet, ask(fleet)) == "w1"
        assert len(set(scores(policies.build("cost", {"decode": 0}), fleet, ask(fleet)).values())) == 1


def homes(policy: policies.Policy, fleet: Fleet, keys: range) -> dict[int, str]:
    return {key: best(policy, fleet, ask(fleet, affinity=f"chat {key}", adapter=f"adapter {key}")) for key in keys}


@pytest.mark.parametrize("name", ["session_affinity", "adapter_aware"])
class TestAffinity:
    @settings(max_examples=20, deadline=None)
    @given(size=st.integers(2, 40), joining=st.sampled_from([1, 1, 2, 20]), seed=st.integers(0, 999))
    def test_few_move_when_workers_join_and_only_to_them(self, name: str, size: int, joining: int, seed: int) -> None:
        fleet, policy, keys = fleet_of(size), policies.build(name, {}), range(seed * 1_000, seed * 1_000 + 300)
        before = homes(policy, fleet, keys)
        new = {fleet.up(worker(f"new{number}", Role.SERVE), 0.0).info.worker_id for number in range(joining)}
        after = homes(policy, fleet, keys)
        moved = [key for key in keys if before[key] != after[key]]
        assert {after[key] for key in moved} <= new
        assert len(moved) <= 300 * 2.5 * joining / (size + joining) + 15
        assert moved or size > 20

    @settings(max_examples=20, deadline=None)
    @given(size=st.integers(2, 40), data=st.data())
    def test_only_those_of_a_worker_that_leaves_move(self, name: str, size: int, data: st.DataObject) -> None:
        fleet, policy, keys = fleet_of(size), policies.build(name, {}), range(300)
        before = homes(policy, fleet, keys)
        lost = f"w{data.draw(st.integers(0, size - 1))}"
        fleet.down(lost)
        after = homes(policy, fleet, keys)
        assert lost not in after.values()
        assert all(after[key] == before[key] for key in keys if before[key] != lost)

    def test_one_that_comes_back_has_its_keys_again(self, name: str) -> None:
        fleet, policy, keys = fleet_of(20), policies.build(name, {}), range(300)
        before = homes(policy, fleet, keys)
        fleet.down("w7")
        view = fleet.up(worker("w7", Role.SERVE), 0.0)
        assert homes(policy, fleet, keys) == before
        key = next(key for key in keys if before[key] == "w7")
        asked = ask(fleet, affinity=f"chat {key}", adapter=f"adapter {key}")
        assert view in policy.narrow(fleet.pool("m", Role.SERVE), asked)  # and not the one that left

    def test_keys_spread_over_the_pool(self, name: str) -> None:
        counts = Counter(homes(policies.build(name, {}), fleet_of(10), range(2_000)).values())
        assert len(counts) == 10
        assert max(counts.values()) < 2 * 200

    def test_one_key_can_t_drown_its_worker(self, name: str) -> None:
        fleet, policy = fleet_of(10), policies.build(name, {"bound": 1.25, "free": 4})
        for number in range(200):
            chosen = best(policy, fleet, ask(fleet, affinity="hot", adapter="hot"))
            depths = [view.depth for view in fleet]
            assert view_of(fleet, chosen).depth <= max(4, 1.25 * (sum(depths) + 1) / 10)
            fleet.claim(view_of(fleet, chosen), f"r{number}", 0, 0)

    def test_without_a_key_the_least_loaded(self, name: str) -> None:
        fleet, policy = fleet_of(3), policies.build(name, {})
        give(fleet, "w0", 1)
        give(fleet, "w2", 2)
        assert best(policy, fleet, ask(fleet)) == "w1"


class TestConfiguration:
    def test_the_documentation_has_every_policy_and_parameter_as_it_is(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
        for name, kind in policies.POLICIES.items():
            declared = policies.parameters(kind).items()
            about = "; ".join(f"`{each}: {entry.default:g}` {entry.metadata['about']}" for each, entry in declared)
            assert f"| `{name}` | {kind.about} | {about} |" in text
        assert text.count("\n| `") >= len(policies.POLICIES)

    def test_an_unknown_policy_is_refused_with_those_that_there_are(self) -> None:
        with pytest.raises(ConfigError) as caught:
            policies.build("fastest", {})
        assert all(name in caught.value.what for name in NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_an_unknown_parameter_is_refused_with_those_that_there_are(self, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            policies.build(name, {"speed": 1})
        assert "'speed'" in caught.value.what
        known = policies.parameters(policies.POLICIES[name])
        assert all(each in caught.value.what for each in known)
        assert known or "has none" in caught.value.what

    @pytest.mark.parametrize("value", [-1, 1e9, float("nan"), float("inf"), True, "1", None])
    def test_a_value_out_of_its_bounds_or_of_another_kind_is_refused(self, value: object) -> None:
        with pytest.raises(ConfigError, match="allowed: a number from 0 to 10"):
            policies.build("cost", {"decode": value})  # type: ignore[dict-item]

    def test_a_whole_number_will_do_for_a_number(self) -> None:
        assert policies.build("cost", {"decode": 3}).options.decode == 3

    def test_half_a_choice_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"found 2\.5, allowed: a whole number from 2 to 32"):
            policies.build("power_of_two", {"choices": 2.5})

    @pytest.mark.parametrize("name", NAMES)
    def test_every_declared_default_is_within_its_own_bounds(self, name: str) -> None:
        for entry in policies.parameters(policies.POLICIES[name]).values():
            assert policies.fits(entry, entry.default), entry
        assert policies.POLICIES[name].about
