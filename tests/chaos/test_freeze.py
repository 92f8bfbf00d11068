"""A worker that is stopped, or behind a link that swallows everything, tells nobody: its silence has to."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from orchestrator.core.session import Session, Signal, State
from tests.chaos.proxy import proxied
from tests.chaos.rig import SILENCE, Rig, rig
from tests.chaos.transcript import DONE, Ask
from workers import mock_transfer

PROMPT = tuple(range(1, 40))
LONG = Ask(1, PROMPT, 300)


def decoding(rig: Rig) -> str:
    flights = rig.stack.gateway.driver._flights._by_request.values()
    return next((flight.decode_worker for flight in flights if flight.output_tokens >= 5), "")


async def test_a_stream_whose_worker_is_frozen_goes_on_elsewhere_and_what_thaws_is_not_heard(whole: Rig) -> None:
    asking = asyncio.create_task(whole.ask(LONG))
    await whole.until(lambda: decoding(whole))
    frozen = whole.places[decoding(whole)]
    assert frozen.proxy is not None
    assert frozen.worker is not None
    frozen.proxy.hold()
    [transcript] = await asking
    assert transcript.outcome == DONE
    [gap] = [gap for gap in transcript.attempts[0].gaps if gap.seconds > 1.0]
    assert SILENCE - 1.5 < gap.seconds < SILENCE + 3.0
    frozen.proxy.release()
    await whole.until(lambda: frozen.worker is not None and not frozen.worker.session.live_requests)


async def test_a_frozen_prefill_worker_costs_its_silence_and_no_answer(whole: Rig) -> None:
    for worker_id in ("m-prefill-0", "m-prefill-1"):
        proxy = whole.places[worker_id].proxy
        assert proxy is not None
        proxy.hold()
    began = time.monotonic()
    [transcript] = await whole.ask(Ask(2, PROMPT, 4))
    assert transcript.outcome == DONE
    assert time.monotonic() - began < SILENCE + 5.0


async def test_a_prefill_worker_that_freezes_in_mid_transfer_holds_its_decode_half_up_for_no_second(
    whole: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decode engine would wait for it far longer than anybody is silent."""
    monkeypatch.setattr(mock_transfer, "_TIMEOUT", 60.0)
    async with AsyncExitStack() as stack:
        ways = {}
        for worker_id in ("m-prefill-0", "m-prefill-1"):
            place = whole.places[worker_id]
            assert place.worker is not None
            engine = place.worker.engine
            ways[worker_id] = await stack.enter_async_context(proxied(f"127.0.0.1:{engine._port}"))
            monkeypatch.setattr(engine, "_port", int(ways[worker_id].address.rpartition(":")[2]))
        frozen: list[str] = []

        def freeze(session: Session) -> None:
            proxy = whole.places[session.prefill_worker].proxy
            assert proxy is not None
            proxy.hold()
            ways[session.prefill_worker].hold()
            frozen.append(session.prefill_worker)

        whole.at((State.PREFILLING, Signal.PREFILL_DONE), freeze)
        asking = asyncio.create_task(whole.ask(Ask(5, PROMPT, 4)))
        await whole.until(lambda: frozen and frozen[0] not in whole.stack.gateway.driver.workers)
        known = time.monotonic()
        assert not asking.done()
        [transcript] = await asyncio.wait_for(asking, 20.0)
        assert transcript.outcome == DONE
        assert time.monotonic() - known < 1.0
        assert whole.taken.count((State.DECODING, Signal.LOST)) == 1
        for way in ways.values():
            way.release()
        await whole.checked()


async def test_a_slow_link_is_no_frozen_worker(whole: Rig) -> None:
    for place in whole.places.values():
        assert place.proxy is not None
        place.proxy.delay = 0.3
    before = len(whole.taken)
    [transcript] = await whole.ask(Ask(3, PROMPT, 30))
    assert transcript.outcome == DONE
    assert not any(signal == "lost" for _, signal in whole.taken[before:])


async def test_a_step_that_takes_long_is_no_frozen_worker() -> None:
    async with rig(1, 1, step_seconds=SILENCE + 1.5) as made:
        [transcript] = await made.ask(Ask(1, PROMPT, 1))
        assert transcript.outcome == DONE
        assert not any(signal == "lost" for _, signal in made.taken)


async def test_a_gateway_that_was_stopped_does_not_take_its_workers_for_silent(
    whole: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop stands still for longer than any worker may be silent, as under SIGSTOP."""
    before = len(whole.taken)
    asking = asyncio.create_task(whole.ask(Ask(4, PROMPT, 300)))
    await whole.until(lambda: decoding(whole))
    time.sleep(SILENCE + 1.0)  # noqa: ASYNC251 - that is what is tested
    [transcript] = await asking
    assert transcript.outcome == DONE
    assert not any(signal == "lost" for _, signal in whole.taken[before:])
