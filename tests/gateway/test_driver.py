"""The shell around the brain without a network: frames in, calls on links out, time by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.core.errors import SegueError
from orchestrator.core.spec import GatewaySpec, ModelSpec, PrefillPlace, Role, RoutingSpec
from orchestrator.core.types import WorkerInfo
from orchestrator.gateway import dispatch
from orchestrator.gateway import driver as driver_module
from orchestrator.gateway.driver import Driver
from orchestrator.proto import worker_pb2 as pb
from orchestrator.record.journal import Journal, Step
from orchestrator.telemetry.metrics import GatewayMetrics
from tests.core.support import worker
from workers import wire

TRANSFER = {"remote_engine_id": "e", "remote_prefill_cached_tokens": 0}


class FakeLink:
    """Keeps what was sent."""

    def __init__(self, info: WorkerInfo) -> None:
        self.worker = info
        self.submitted: list[str] = []
        self.aborted: list[str] = []

    def submit(self, wire_id: str, request: Sequence[bytes], trace: Mapping[str, str]) -> None:
        self.submitted.append(wire_id)

    def abort(self, wire_id: str) -> None:
        self.aborted.append(wire_id)


class FakeCore:
    """A front end that keeps what it is told."""

    model = "m"

    def __init__(self) -> None:
        self.failed: dict[str, SegueError] = {}
        self.outputs: list[EngineCoreOutput] = []

    def push(self, outputs: list[EngineCoreOutput]) -> None:
        self.outputs.extend(outputs)

    def fail(self, request_id: str, error: SegueError) -> None:
        self.failed[request_id] = error


class Faulty(Journal):
    """Around a brain that has defects: ``fault`` raises where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Callable[[m.Event], None] = lambda _: None

    def around(self, step: Step) -> Step:
        def tried(event: m.Event, now: float) -> list[m.Command]:
            self.fault(event)
            return step(event, now)

        return super().around(tried)


class World:
    """A driver over fake links. Each look at the clock finds it a little later."""

    def __init__(self, *workers: WorkerInfo) -> None:
        self.now = 100.0
        spec = ModelSpec("m", "x", {}, routing=RoutingSpec("least_load", prefill=PrefillPlace.APART))
        self.brain = Brain(Random(0), GatewaySpec(), [spec])
        self.journal = Faulty()
        self.driver = Driver(self.brain, GatewayMetrics("gw"), self.clock, self.journal)
        self.links = {info.worker_id: FakeLink(info) for info in workers}
        self.core = FakeCore()
        for link in self.links.values():
            self.driver.opened(link, link.worker)

    def clock(self) -> float:
        self.now += 0.0005
        return self.now

    def ask(self, request_id: str, tokens: Sequence[int] = tuple(range(64))) -> None:
        params = SamplingParams(max_tokens=4)
        request = EngineCoreRequest(request_id, list(tokens), None, params, None, 0.0, None, None, None)
        self.driver.submit(self.core, request)

    def outputs(self, worker_id: str, *outputs: EngineCoreOutput) -> None:
        frame = wire.encode_outputs(outputs, 0.0)
        self.driver.stepped(worker_id, pb.Step(outputs=frame, load=pb.Load(kv_blocks_total=100)))


def prefilled(wire_id: str) -> EngineCoreOutput:
    return EngineCoreOutput(wire_id, [1], finish_reason=FinishReason.LENGTH, kv_transfer_params=TRANSFER)


@pytest.fixture
async def world() -> World:
    return World(worker("p", Role.PREFILL), worker("d", Role.DECODE))


@pytest.mark.source
async def test_what_one_frame_brings_happens_at_one_time(world: World) -> None:
    """Two prompts that one step computed: the time that the gateway takes for the first is not what the second took."""
    seen: list[tuple[int, float]] = []
    view = world.brain.fleet.get("p")
    view.cost = _Heard(seen)
    world.ask("a")
    world.ask("b")
    world.now += 1.0
    world.outputs("p", *map(prefilled, world.links["p"].submitted))
    world.ask("c")
    world.now += 1.0
    world.outputs("p", prefilled(world.links["p"].submitted[-1]))
    assert [(tokens, round(seconds, 1)) for tokens, seconds in seen] == [(128, 1.0)]


class _Heard:
    def __init__(self, seen: list[tuple[int, float]]) -> None:
        self._seen = seen

    def saw_prefill(self, tokens: int, seconds: float) -> None:
        self._seen.append((tokens, seconds))

    def prefill_seconds(self, *_: Any) -> float:
        return 1.0

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 0.0


async def test_a_prompt_that_can_not_be_hashed_costs_its_own_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(driver_module, "blocks_of", _raise)
        world.ask("bad")
    assert set(world.core.failed) == {"bad"}
    assert await world.driver.idle(0.1), "a request that never arrived is waited for"
    world.ask("good")
    assert world.links["p"].submitted == ["good~p1"]


async def test_a_defect_of_the_brain_costs_the_request_it_met(world: World) -> None:
    world.ask("bad")
    world.ask("good")
    bad, good = world.links["p"].submitted
    world.journal.fault = lambda event: _raise() if isinstance(event, m.PrefillEnded) and event.wire_id == bad else None
    world.outputs("p", prefilled(bad), prefilled(good))
    assert set(world.core.failed) == {"bad"}
    assert world.links["d"].submitted == ["good~d1"]
    world.outputs("d", EngineCoreOutput("good~d1", [1, 2], finish_reason=FinishReason.LENGTH))
    assert [output.request_id for output in world.core.outputs] == ["good"]
    assert await world.driver.idle(0.1)
    assert not world.brain.live
    world.brain.check()


@pytest.mark.parametrize("at", [[m.Arrived], [m.Cancelled], [m.PrefillEnded, m.Cancelled]])
async def test_no_defect_leaves_a_request_without_an_end(world: World, at: list[type]) -> None:
    world.journal.fault = lambda event: _raise() if type(event) in at else None
    world.ask("bad")
    if world.links["p"].submitted:
        world.outputs("p", prefilled("bad~p1"))
        world.driver.cancel("bad", complete=False)
    assert await world.driver.idle(0.1)
    assert set(world.core.failed) == {"bad"}


async def test_a_defect_at_a_loss_costs_those_that_were_there(world: World) -> None:
    for request_id in ("decoding", "prefilling", "prefilling too"):
        world.ask(request_id)
    world.outputs("p", prefilled("decoding~p1"))
    assert world.links["d"].submitted == ["decoding~d1"]
    world.journal.fault = lambda event: _raise() if isinstance(event, m.WorkerDown) else None
    world.driver.closed(world.links["p"], "it died")
    assert set(world.core.failed) == {"prefilling", "prefilling too"}
    world.ask("later")
    assert "later" not in world.core.failed, "nothing is sent to what is gone"
    world.driver.cancel("later", complete=False)
    world.driver.closed(world.links["d"], "it died")
    assert set(world.core.failed) == {"decoding", "prefilling", "prefilling too"}
    assert await world.driver.idle(0.1)


async def test_an_end_that_can_not_be_counted_is_told_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask("a")
    with monkeypatch.context() as patch:
        patch.setattr(world.driver._metrics, "request_finished", _raise)
        rejected = pb.Rejected(wire_id="a~p1", reason=pb.Rejected.INVALID, detail="not to its liking")
        world.driver.stepped("p", pb.Step(rejected=[rejected], load=pb.Load(kv_blocks_total=100)))
    assert world.core.failed["a"].http_status == 400
    assert await world.driver.idle(0.1)


async def test_a_defect_does_not_stop_the_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    third = asyncio.Event()
    ticks: list[float] = []

    def tick(event: m.Event) -> None:
        assert isinstance(event, m.Tick)
        ticks.append(world.now)
        if len(ticks) == 3:
            third.set()
        _raise()

    monkeypatch.setattr(driver_module, "TICK_SECONDS", 0.001)
    world.journal.fault = tick
    clock = asyncio.create_task(world.driver.tick())
    await asyncio.wait_for(third.wait(), 5)
    clock.cancel()


def _raise(*_: Any) -> None:
    raise RuntimeError("a defect")


async def test_a_request_too_large_for_a_frame_costs_itself_and_not_the_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "REQUEST_BYTES", 400)
    world.ask("large", range(2000))
    world.ask("small", range(16))
    assert [error.http_status for error in world.core.failed.values()] == [400]
    assert set(world.core.failed) == {"large"}
    assert len(world.links["p"].submitted) == 1
