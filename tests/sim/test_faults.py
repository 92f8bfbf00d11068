"""Faults are read as they are written, and a wrong one is told with what is allowed."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import Role
from orchestrator.sim.carrier import Carrier
from orchestrator.sim.disturb import RESTART_SECONDS
from orchestrator.sim.faults import Fault, Kind, parse, share, timed
from orchestrator.sim.flight import Flight
from orchestrator.sim.promise import PromiseBroken
from orchestrator.sim.run import Options, Run, routed
from tests.sim.support import SMALL, cluster, play, requests


def test_every_kind_is_read() -> None:
    text = (
        "crash:m-serve-0@10, drain:3@1.5,slow:1@20:x2.5,slow:1@20:x2+5,fail:2@4:0.5,fail:2@4:1+3,flap:1@2+6,"
        "partition:1-m-serve-2@3+4,lose:0.1,reorder:0.2,leave:1,random:3"
    )
    assert parse(text) == (
        Fault(Kind.CRASH, "m-serve-0", 10.0),
        Fault(Kind.DRAIN, "3", 1.5),
        Fault(Kind.SLOW, "1", 20.0, factor=2.5),
        Fault(Kind.SLOW, "1", 20.0, factor=2.0, seconds=5.0),
        Fault(Kind.FAIL, "2", 4.0, share=0.5),
        Fault(Kind.FAIL, "2", 4.0, share=1.0, seconds=3.0),
        Fault(Kind.FLAP, "1", 2.0, seconds=6.0),
        Fault(Kind.PARTITION, "m-serve-2", 3.0, gateway=1, seconds=4.0),
        Fault(Kind.LOSE, share=0.1),
        Fault(Kind.REORDER, share=0.2),
        Fault(Kind.LEAVE, share=1.0),
        Fault(Kind.RANDOM, count=3),
    )
    assert parse("") == ()


@pytest.mark.parametrize(
    "text", ["fire:1@2", "crash:1", "crash:@2", "slow:1@2:3", "slow:1@2:x0", "partition:1@2+3", "lose:1.5", "random:x"]
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.where == f"--faults {text}"


@pytest.mark.parametrize(
    ("text", "words"),
    [("crash:9@1", "no worker '9'"), ("crash:x@1", "no worker"), ("partition:1-0@1+1", "no gateway 1")],
)
def test_faults_of_what_there_is_not_are_refused(text: str, words: str) -> None:
    spec = cluster("serve")
    with pytest.raises(ConfigError, match=words):
        play(spec, requests(spec, requests=3), disturbed=text)


def test_faults_at_random_are_within_the_run_and_the_same_for_a_seed() -> None:
    drawn = list(timed(parse("random:50,lose:0.5"), 4, 2, 30.0, Random(1)))
    assert drawn == list(timed(parse("random:50,lose:0.5"), 4, 2, 30.0, Random(1)))
    assert len(drawn) == 50
    assert {fault.kind for fault in drawn} == {Kind.CRASH, Kind.DRAIN, Kind.SLOW, Kind.PARTITION}
    assert all(0 <= int(fault.worker) < 4 and fault.gateway in (0, 1) and 0 <= fault.at <= 30 for fault in drawn)


def test_the_largest_share_counts() -> None:
    faults = parse("lose:0.1,lose:0.3,crash:0@1")
    assert (share(faults, Kind.LOSE), share(faults, Kind.LEAVE)) == (0.3, 0.0)


# ---- what they do


def test_a_short_partition_delays_and_a_long_one_makes_streams_go_on_elsewhere() -> None:
    spec = cluster("serve")
    asked = requests(spec, "generate:poisson,rate=20,prompt=300,output=20", requests=100)
    calm, short, long = (
        play(spec, asked, disturbed=text) for text in ("", "partition:0-0@1+1.5", "partition:0-0@1+40")
    )
    assert short.measure.outcomes["finished"] == 100
    assert max(short.measure.ttft) > 1.0 > max(calm.measure.ttft)
    assert long.measure.outcomes["finished"] == 100
    assert long.measure.pauses
    assert not short.measure.pauses


@pytest.mark.parametrize(("silence", "noticed"), [({}, True), ({"silence_seconds": 15.0}, False)])
def test_a_silence_is_noticed_after_as_long_as_a_live_gateway_takes(silence: dict[str, float], noticed: bool) -> None:
    spec = cluster("serve", **silence)
    asked = requests(spec, "generate:poisson,rate=20,prompt=300,output=150", requests=100)
    result = play(spec, asked, disturbed="partition:0-0@2+8")
    assert result.measure.outcomes["finished"] == 100
    assert bool(result.measure.pauses) is noticed


@pytest.mark.parametrize("roles", [("serve",), ("prefill", "decode")])
def test_streams_whose_worker_dies_go_on_and_get_each_token_once(roles: tuple[str, ...]) -> None:
    spec = cluster(*roles)
    asked = requests(spec, "generate:poisson,rate=20,prompt=300,output=150", requests=200)
    result = play(spec, asked, disturbed=f"crash:m-{roles[-1]}-0@3,crash:m-{roles[-1]}-1@6.5", gateways=2)
    measure = result.measure
    assert measure.outcomes["finished"] == 200
    assert len(measure.pauses) > 10
    assert 0 < max(measure.pauses) < RESTART_SECONDS + 1.0  # at worst no worker was left
    assert measure.output_tokens == sum(offer.output_tokens for offer in asked)
    assert measure.prompt_tokens == sum(offer.prompt_tokens for offer in asked)


@pytest.mark.source
def test_a_stream_that_goes_on_from_another_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Carrier._start

    def one_too_few(self: Carrier, flight: Flight, *args: Any, **more: Any) -> None:
        flight.sent = max(0, flight.sent - 1)
        start(self, flight, *args, **more)
        flight.sent += 1

    monkeypatch.setattr(Carrier, "_start", one_too_few)
    spec = cluster()
    asked = requests(spec, "generate:poisson,rate=20,prompt=300,output=150", requests=60)
    with pytest.raises(PromiseBroken, match="first token after"):
        play(spec, asked, disturbed="crash:0@1", deep=False)


def test_lost_cache_reports_break_the_stream_and_a_snapshot_repairs_the_view() -> None:
    spec = cluster("serve")
    asked = requests(spec, "generate:poisson,rate=5,prompt=400,prefix=320,prefixes=10,output=4", requests=300)
    calm, lossy = play(spec, asked), play(spec, asked, disturbed="lose:0.05")
    assert lossy.measure.retried + lossy.measure.outcomes["failed"] > 0
    # What the router knows stays true: hits hardly suffer.
    hits = [one.measure.cached_tokens / one.measure.prompt_tokens for one in (calm, lossy)]
    assert hits[1] > 0.8 * hits[0] > 0.2


def test_a_worker_that_drains_ends_what_it_has_and_comes_back() -> None:
    spec = cluster("serve")
    asked = requests(spec, "generate:poisson,rate=20,output=60", requests=400)
    result = play(spec, asked, disturbed="drain:0@3")
    assert result.measure.outcomes["finished"] == 400
    assert result.workers[0].info.epoch == 2
    assert result.workers[0].engine.busy > 0


@pytest.mark.parametrize("disturbed", ["fail:0@3:0.6+20", "flap:0@3+15", "slow:0@3:x6+20"])
@pytest.mark.parametrize("roles", [("serve",), ("prefill", "decode")])
def test_a_sick_worker_is_taken_out_and_comes_back_when_it_is_well(roles: tuple[str, ...], disturbed: str) -> None:
    spec = cluster(*roles, engine={**SMALL, "kv_blocks": 4096})
    asked = requests(spec, "generate:poisson,rate=50,prompt=600,output=60,shared=0", duration=110.0)
    model = routed(spec.models[0], "round_robin")  # which goes on sending to whoever is slow
    run = Run(spec, model, asked, Options({Role(role): 4 for role in roles}, faults=parse(disturbed)))
    states: dict[int, str] = {}

    def look(_: object) -> None:
        states[round(run.clock.now)] = run.gateways[0].brain.health.of(run.workers[0].info.worker_id).value
        run.clock.after(1.0, look)

    run.clock.after(1.0, look)
    run.go()
    assert "out" in {state for at, state in states.items() if 3 < at < 25}
    assert states[max(states)] == "healthy"
    assert "out" not in {states[at] for at in (1, 2)}
