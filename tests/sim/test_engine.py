"""The modelled engine takes the same time for the same work as the mock engine, token by token in order."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from orchestrator.core.spec import Backend, ModelSpec, PoolSpec, Role
from orchestrator.sim.clock import Clock
from orchestrator.sim.engine import Engine
from orchestrator.sim.flight import Flight
from orchestrator.sim.half import Half
from orchestrator.sim.histogram import Histogram
from orchestrator.sim.offer import Offer
from orchestrator.sim.run import Options, Run
from orchestrator.sim.settings import EngineSettings, engine_settings
from tests.sim.support import cluster
from tests.workers.clock import StepClock
from tests.workers.support import make_request
from workers.mock import MockEngine

SPEC = cluster()
LINK = next(iter(Run(SPEC, SPEC.models[0], [], Options()).gateways[0].links.values()))  # engines never look at it


def settings_of(**engine: Any) -> EngineSettings:
    pool = PoolSpec(Role.SERVE, backend=Backend.MOCK, engine=engine)
    return engine_settings(ModelSpec("m", "mock", {Role.SERVE: pool}), pool, None, None)


@dataclass(frozen=True)
class Asked:
    at: float
    prompt: tuple[int, ...]
    output: int

    def blocks(self, size: int) -> list[int]:
        hashes, parent = [], 0
        for end in range(size, len(self.prompt) + 1, size):
            parent = hash((parent, *self.prompt[end - size : end])) >> 4
            hashes.append(parent)
        return hashes


@dataclass
class Seen:
    """When a request's first and last tokens came, and what its cache saved."""

    first: float = -1.0
    last: float = -1.0
    cached: int = -1


class Modelled:
    """An engine with nobody around it."""

    def __init__(self, settings: EngineSettings) -> None:
        self.clock, self.gaps = Clock(), Histogram()
        self.seen: dict[str, Seen] = {}
        self.engine = Engine(settings, 1.0, self.clock, Random(0), self.gaps, self._report)
        self._size = settings.facts.block_size
        self._numbers = itertools.count(1)

    def _report(self, firsts: list[Half], ended: list[Half]) -> None:
        for half in firsts:
            self.seen[half.wire_id] = Seen(self.clock.now, cached=half.cached)
        for half in ended:
            self.seen[half.wire_id].last = self.clock.now

    def half(self, wire_id: str, asked: Asked) -> Half:
        blocks = asked.blocks(self._size)
        flight = Flight(0, wire_id, Offer(asked.at, len(asked.prompt), asked.output, blocks), asked.at)
        return Half(wire_id, LINK, flight, next(self._numbers), len(asked.prompt), asked.output, blocks)

    def run(self, asked: Sequence[Asked]) -> dict[str, Seen]:
        for number, one in enumerate(asked):
            self.clock.at(one.at, self.engine.submit, self.half(f"r{number}", one))
        self.clock.run()
        self.engine.cache.check()
        assert self.engine.idle
        assert self.engine.cache.used == 0
        return self.seen


class LeapClock(StepClock):
    """Jumps to the next sleeper's time when nothing else is ready; without sockets there is nothing to wait for."""

    async def leap(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        if self._sleepers:
            self._now, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)


async def mocked(engine: dict[str, Any], asked: Sequence[Asked]) -> dict[str, Seen]:
    """The same requests on the mock engine."""
    clock = LeapClock()
    mock = MockEngine(engine, clock)
    seen: dict[str, Seen] = {}

    async def submit(number: int, one: Asked) -> None:
        await clock.sleep(one.at)
        await mock.submit(make_request(f"r{number}", one.prompt, max_tokens=one.output))

    async def listen() -> None:
        ended = 0
        async for step in mock.steps():
            for output in step.outputs:
                one = seen.setdefault(output.request_id, Seen(clock.monotonic()))
                if output.prefill_stats is not None:
                    one.cached = output.prefill_stats.num_local_cached_tokens
                if output.finished:
                    one.last = clock.monotonic()
                    ended += 1
            if ended == len(asked):
                return

    starting = asyncio.create_task(mock.start(lambda stage: None))
    while not starting.done():
        await asyncio.sleep(0)
        await clock.leap()
    tasks = [asyncio.create_task(submit(number, one)) for number, one in enumerate(asked)]
    listening = asyncio.create_task(listen())
    while not listening.done():
        await clock.leap()
    await asyncio.gather(*tasks, listening)
    await mock.shutdown()
    return seen


def load(rng: Random, count: int, pause: float, longest: int) -> list[Asked]:
    """Prompts with common fronts and ends of their own; no two arrive at once."""
    fronts = [tuple(rng.randrange(100) for _ in range(rng.randrange(1, longest // 2))) for _ in range(3)]
    at, asked = 0.0, []
    for number in range(count):
        at += rng.random() * pause
        own = (1000 + number, *(rng.randrange(100) for _ in range(rng.randrange(1, longest // 2))))
        asked.append(Asked(at, rng.choice(fronts) + own, rng.randrange(1, 14)))
    return asked


@pytest.mark.parametrize("seed", range(12))
async def test_every_first_and_last_token_comes_when_the_mock_engine_has_it(seed: int) -> None:
    rng = Random(seed)
    engine = {
        "block_size": rng.choice((1, 3, 8)),
        "step_seconds": 0.5,
        "prefill_tokens_per_second": rng.choice((20.0, 1000.0)),
        "max_num_seqs": rng.choice((1, 3, 16)),
        "kv_blocks": rng.choice((140, 2000)),
        "enable_prefix_caching": rng.random() < 0.8,
    }
    if engine["kv_blocks"] == 140:
        engine["max_num_seqs"], engine["block_size"] = 3, 1  # blocks are short, but not for those that run
    asked = load(rng, 40, rng.choice((0.4, 2.0)), 30)
    modelled, real = Modelled(settings_of(**engine)).run(asked), await mocked(engine, asked)
    assert {wire_id: one.cached for wire_id, one in modelled.items()} == {i: one.cached for i, one in real.items()}
    for wire_id, one in real.items():
        assert modelled[wire_id].first == pytest.approx(one.first), wire_id
        assert modelled[wire_id].last == pytest.approx(one.last), wire_id


def test_a_prompt_delays_everybodys_token_in_its_step() -> None:
    modelled = Modelled(settings_of(step_seconds=1.0, prefill_tokens_per_second=10.0))
    modelled.run([Asked(0.0, (1,), 5), Asked(2.5, (2,) * 31, 1)])
    # 1, 2, 3; the other's 30 uncached tokens make the fourth step three seconds longer: 7, 8.
    assert modelled.seen["r0"] == Seen(1.0, 8.0, 0)
    assert modelled.seen["r1"] == Seen(7.0, 7.0, 0)
    assert modelled.gaps.curve() == [(1.0, pytest.approx(0.75)), (pytest.approx(4.0), 1.0)]
    assert modelled.engine.busy == pytest.approx(8.0)


def test_sequences_that_outgrow_the_blocks_wait_and_go_on_where_they_were() -> None:
    modelled = Modelled(settings_of(block_size=2, kv_blocks=10, step_seconds=1.0, max_num_seqs=4))
    seen = modelled.run([Asked(0.1 * n, (n, n, n), 12) for n in range(3)])
    assert len(seen) == 3
    gaps = modelled.gaps.curve()
    assert modelled.gaps.count == 3 * 11  # every token but the first ones, once each
    assert gaps[-1][0] > 5.0  # somebody had to wait
    assert seen["r0"].last - seen["r0"].first == pytest.approx(11.0, abs=0.01)  # but not the oldest


def test_a_long_prompt_is_computed_in_parts_where_a_step_has_a_bound() -> None:
    pool = PoolSpec(Role.SERVE, engine={"max_num_batched_tokens": 1000, "enforce_eager": True})
    settings = engine_settings(ModelSpec("m-1b", "x", {Role.SERVE: pool}), pool, 0.0, 0.0)
    whole = Modelled(settings)
    whole.run([Asked(0.0, tuple(range(3500)), 1)])
    assert whole.engine.step == 4
    tokens = 3499 * (settings.prefill_seconds + settings.context_seconds * 1750)
    assert whole.seen["r0"].last == pytest.approx(4 * settings.step_seconds + tokens, rel=0.01)


@pytest.mark.parametrize("after", [0.5, 1.0, 3.7, 20.0])
def test_an_abort_frees_everything_at_any_time(after: float) -> None:
    modelled = Modelled(settings_of(block_size=2, kv_blocks=40, step_seconds=1.0, prefill_tokens_per_second=10.0))
    engine, clock = modelled.engine, modelled.clock
    half = modelled.half("gone", Asked(0.0, tuple(range(15)), 30))
    other = modelled.half("stays", Asked(0.0, tuple(range(50, 61)), 9))
    clock.at(0.0, engine.submit, half)
    clock.at(0.2, engine.submit, other)
    clock.at(after, engine.abort, half)
    clock.run()
    engine.cache.check()
    assert engine.idle
    assert engine.cache.used == 0
    assert list(modelled.seen) == ["stays"] if after < 1 else "stays" in modelled.seen


def test_tokens_up_to_a_time_are_known_without_an_event_for_each() -> None:
    modelled = Modelled(settings_of(step_seconds=1.0))
    half = modelled.half("a", Asked(0.0, (1, 2), 50))
    modelled.clock.at(0.0, modelled.engine.submit, half)
    counts: list[int] = []
    for at in (0.5, 1.5, 10.5, 20.25):
        modelled.clock.at(at, lambda _: counts.append(modelled.engine.emitted(half, modelled.clock.now)))
    modelled.clock.run()
    assert counts == [0, 1, 10, 20]


def test_noise_and_spread_are_off_for_a_mock_and_on_for_anything_else() -> None:
    assert (settings_of().spread, settings_of().noise) == (0.0, 0.0)
    pool = PoolSpec(Role.SERVE)
    modelled = engine_settings(ModelSpec("m", "x", {Role.SERVE: pool}), pool, None, None)
    assert (modelled.spread, modelled.noise) == (0.05, 0.05)


def test_mock_defaults_are_the_mocks() -> None:
    from orchestrator.sim.settings import MOCK_DEFAULTS
    from workers.mock_settings import MockSettings

    assert dict(MOCK_DEFAULTS) == {name: getattr(MockSettings(), name) for name in MOCK_DEFAULTS}
