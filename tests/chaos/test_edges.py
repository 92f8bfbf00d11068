"""Something dies at each edge of the session table, within the step that takes it: no edge is left out.

After each the one checker looks at what the client got and at what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.session import TABLE, Session, Signal, State
from tests.chaos.rig import Edge, Rig
from tests.chaos.transcript import CANCELLED, DONE, Ask

PROMPT = tuple(range(1, 60))
ASK = Ask(1, PROMPT, 40)
SEEDED = replace(ASK, seed=7)
SHORT = replace(ASK, max_tokens=1)

# What brings a request to the edge: the request, and a fault before, at another edge.
PREFILL, DECODE = "prefill", "decode"
WAYS: dict[Edge, tuple[Ask, tuple[Edge, str] | None]] = {
    (State.WAITING, Signal.PLACED_APART): (ASK, None),
    (State.PREFILLING, Signal.PREFILL_DONE): (ASK, None),
    (State.PREFILLING, Signal.LOST): (ASK, ((State.WAITING, Signal.PLACED_APART), PREFILL)),
    (State.DECODING, Signal.FIRST_TOKEN): (SEEDED, None),
    (State.DECODING, Signal.LOST): (ASK, ((State.PREFILLING, Signal.PREFILL_DONE), DECODE)),
    (State.STREAMING, Signal.LOST): (SEEDED, ((State.DECODING, Signal.FIRST_TOKEN), DECODE)),
    (State.STREAMING, Signal.FINISHED): (ASK, None),
    (State.STREAMING, Signal.ENDED_EARLY): (replace(ASK, cancel_after=3), None),
}
# Those that need a fleet of another kind, or a client that leaves: each has a test of its own below.
APART_FROM_THESE: set[Edge] = {
    (State.WAITING, Signal.PLACED_TOGETHER),
    (State.WAITING, Signal.ENDED_EARLY),
    (State.PREFILLING, Signal.ENDED_EARLY),
    (State.DECODING, Signal.ENDED_EARLY),
    (State.DECODING, Signal.FINISHED),
}


def test_no_edge_is_left_out() -> None:
    table = {(state, signal) for state, row in TABLE.items() for signal in row}
    assert set(WAYS) | APART_FROM_THESE == table
    assert not set(WAYS) & APART_FROM_THESE


def strike(rig: Rig, victim: str) -> Callable[[Session], None]:
    """Kills the worker of that half, or whoever has had it last."""
    had: dict[str, str] = {}

    def now(session: Session) -> None:
        where = {PREFILL: session.prefill_worker, DECODE: session.decode_worker}
        worker_id = where[victim] or had.get(victim) or f"m-{victim}-0"
        rig.kill(worker_id)

    return now


@pytest.mark.parametrize("victim", [PREFILL, DECODE])
@pytest.mark.parametrize("edge", list(WAYS), ids=lambda edge: f"{edge[0]}-{edge[1]}".replace(" ", "_"))
async def test_a_worker_dies_at_this_very_edge(whole: Rig, edge: Edge, victim: str) -> None:
    ask, earlier = WAYS[edge]
    struck: list[str] = []

    def blow(session: Session) -> None:
        strike(whole, victim)(session)
        struck.append(session.request_id)

    if earlier is not None:
        whole.at(earlier[0], strike(whole, earlier[1]))
    whole.at(edge, blow)
    reviving = asyncio.create_task(_revive_all(whole)) if earlier is not None else None
    try:
        async with asyncio.timeout(30):
            [transcript] = await whole.ask(ask)
    finally:
        if reviving is not None:
            reviving.cancel()
            await asyncio.gather(reviving, return_exceptions=True)
    await whole.until(lambda: struck)  # a gateway hears of a client that left a little later
    assert edge in whole.taken
    assert transcript.outcome == (CANCELLED if ask.cancel_after is not None else DONE)


async def _revive_all(rig: Rig) -> None:
    """A controller that replaces what died; where two die of two, the request has to wait for it."""
    while True:
        await rig.until(lambda: any(place.worker is None for place in rig.places.values()), 60)
        for worker_id, place in list(rig.places.items()):
            if place.worker is None:
                await rig.revive(worker_id)


@pytest.mark.parametrize("edge", list(WAYS), ids=lambda edge: f"{edge[0]}-{edge[1]}".replace(" ", "_"))
async def test_a_client_leaves_at_this_very_edge(whole: Rig, edge: Edge) -> None:
    ask, earlier = WAYS[edge]
    left = asyncio.Event()
    if earlier is not None:
        whole.at(earlier[0], strike(whole, earlier[1]))
    whole.at(edge, lambda _: left.set())
    asking = asyncio.create_task(whole.ask(ask))
    await asyncio.wait_for(left.wait(), 20)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert edge in whole.taken
    whole.clients.transcripts.clear()  # a client that is gone has no outcome; the system's own books have one
    assert await whole.stack.gateway.driver.idle(10)


@pytest.mark.parametrize(
    "edge",
    [
        (State.PREFILLING, Signal.ENDED_EARLY),
        (State.DECODING, Signal.ENDED_EARLY),
    ],
    ids=lambda edge: f"{edge[0]}-{edge[1]}".replace(" ", "_"),
)
@pytest.mark.parametrize("victim", [PREFILL, DECODE])
async def test_a_worker_dies_as_its_request_is_cancelled_there(whole: Rig, edge: Edge, victim: str) -> None:
    """The client leaves at the edge into that state, and the worker dies as its request ends there."""
    into = {State.PREFILLING: Signal.PLACED_APART, State.DECODING: Signal.PREFILL_DONE}[edge[0]]
    before = {State.PREFILLING: State.WAITING, State.DECODING: State.PREFILLING}[edge[0]]
    driver = whole.stack.gateway.driver

    def leave(session: Session) -> None:
        driver.cancel(session.request_id, complete=False)

    whole.at((before, into), leave)
    whole.at(edge, strike(whole, victim))
    asking = asyncio.create_task(whole.ask(ASK))
    await whole.until(lambda: edge in whole.taken)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    whole.clients.transcripts.clear()


async def test_a_worker_dies_at_the_edge_where_it_would_have_done_both_halves(whole: Rig) -> None:
    for worker_id in ("m-prefill-0", "m-prefill-1"):
        whole.kill(worker_id)
    driver = whole.stack.gateway.driver
    await whole.until(lambda: not [each for each in driver.workers if "prefill" in each])
    edge = State.WAITING, Signal.PLACED_TOGETHER
    whole.at(edge, strike(whole, DECODE))
    [transcript] = await whole.ask(ASK)
    assert whole.taken.count(edge) == 2
    assert transcript.outcome == DONE


async def test_a_worker_comes_up_at_the_edge_where_its_request_gives_up_waiting(whole: Rig) -> None:
    edge = State.WAITING, Signal.ENDED_EARLY
    whole.at((State.WAITING, Signal.PLACED_APART), lambda _: [whole.kill(f"m-decode-{n}") for n in (0, 1)])
    revived: list[asyncio.Task[None]] = []
    whole.at(edge, lambda _: revived.append(asyncio.create_task(whole.revive("m-decode-0"))))
    [transcript] = await whole.ask(replace(ASK, deadline=1.0))
    assert transcript.outcome == "deadline_exceeded"
    await whole.until(lambda: edge in whole.taken)
    await asyncio.gather(*revived)


async def test_a_worker_dies_at_the_edge_where_a_request_without_a_token_finishes(whole: Rig) -> None:
    """No engine ends a generation without a token; an embedding is one output without any, which finishes it."""
    edge = State.DECODING, Signal.FINISHED
    driver = whole.stack.gateway.driver

    def finish(session: Session) -> None:
        driver._feed.put(m.DecodeEnded(session.decode_wire, 0))
        strike(whole, DECODE)(session)

    whole.at((State.PREFILLING, Signal.PREFILL_DONE), finish)
    asking = asyncio.create_task(whole.ask(SHORT))
    await whole.until(lambda: edge in whole.taken)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    whole.clients.transcripts.clear()
