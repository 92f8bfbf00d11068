"""A whole gateway in this process over mock workers, each behind a link that can fail, each of which can die and
come back. Faults strike at once, within the step that calls for them: nothing is a matter of time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core import messages as m
from orchestrator.core.session import TABLE, Session, Signal, State
from orchestrator.core.spec import Role
from tests.chaos.bounds import within
from tests.chaos.checker import Accounts, accounts, check, settled
from tests.chaos.clients import Clients
from tests.chaos.proxy import Proxy, proxied
from tests.chaos.transcript import Ask, Transcript
from tests.gateway.support import Stack, cluster, model, running
from tests.workers.support import MockWorker, mock_worker

ENGINE: dict[str, Any] = {
    "block_size": 16,
    "max_model_len": 512,
    "step_seconds": 0.004,
    "lease_seconds": 1.0,
    "restores": True,
}
SILENCE = 2.0


@dataclass
class Place:
    """Where one worker after the other is, under one id."""

    worker_id: str
    role: Role
    epoch: int = 0
    worker: MockWorker | None = None
    proxy: Proxy | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)


Edge = tuple[State, Signal]


def signals(session: Session) -> list[Signal]:
    """All that moved it, oldest first."""
    found, turn = [], session.newest
    while turn is not None:
        found.append(turn.signal)
        turn = turn.before
    return found[::-1]


class Rig:
    """``at`` has a fault strike where a request's session takes an edge of its table."""

    def __init__(self, stack: Stack, places: dict[str, Place], **engine: Any) -> None:
        self.stack = stack
        self.places = places
        self.clients = Clients(stack.url, stack.grpc_address, "m")
        self.taken: list[Edge] = []
        self._engine = {**ENGINE, **engine}
        self._strikes: dict[Edge, Callable[[Session], object]] = {}
        feed = stack.gateway.driver._feed
        self._step, feed._step = feed._step, self._watched

    # ---- faults

    def kill(self, worker_id: str) -> None:
        """As -9 does: the engine is gone and its connections with it, within this call."""
        place = self.places[worker_id]
        if place.worker is not None and place.proxy is not None:
            place.worker.engine.fail()
            place.proxy.cut()
            place.worker = None

    async def revive(self, worker_id: str) -> None:
        """Another comes up in its place."""
        place = self.places[worker_id]
        self.kill(worker_id)
        self.stack.controller.remove(worker_id)
        await _gone(place)
        place.stack, place.epoch = AsyncExitStack(), place.epoch + 1
        context = mock_worker(place.role, "m", worker_id=worker_id, epoch=place.epoch, **self._engine)
        place.worker = await place.stack.enter_async_context(context)
        place.proxy = await place.stack.enter_async_context(proxied(place.worker.address))
        self.stack.controller.add("m", place.role, worker_id, place.proxy.address, epoch=place.epoch)

    async def mended(self) -> None:
        """Everyone is there again, and the gateway has a session with each."""
        for worker_id, place in self.places.items():
            if place.worker is None:
                await self.revive(worker_id)
            elif place.proxy is not None:
                place.proxy.mend()
        driver = self.stack.gateway.driver
        await self.until(lambda: all(driver.workers[i].epoch == p.epoch if i in driver.workers else False
                                     for i, p in self.places.items()), what="sessions with all workers")  # fmt: skip

    async def until(self, true: Callable[[], object], seconds: float = 20.0, what: str = "what is waited for") -> None:
        async with within(seconds, what):
            while not true():
                await self.stack.gateway.status_changed(0.01)

    # ---- where they strike

    def at(self, edge: Edge, strike: Callable[[Session], object]) -> None:
        """Strikes once, in the turn of the loop in which the edge is taken: its commands are out, nothing else is."""
        self._strikes[edge] = strike

    def _watched(self, event: m.Event, now: float) -> list[m.Command]:
        sessions = list(self.stack.gateway.driver._brain._sessions.values())
        known = {id(session): len(signals(session)) for session in sessions}
        if isinstance(event, m.Arrived):
            return self._arriving(event, now)
        commands = self._step(event, now)
        for session in sessions:
            self._look(session, known[id(session)])
        return commands

    def _arriving(self, event: m.Arrived, now: float) -> list[m.Command]:
        commands = self._step(event, now)
        session = self.stack.gateway.driver._brain._sessions.get(event.request_id)
        if session is not None:
            self._look(session, 0)
        return commands

    def _look(self, session: Session, known: int) -> None:
        state = State.WAITING
        for place, signal in enumerate(signals(session)):
            edge = state, signal
            state = TABLE[state][signal]
            if place >= known:
                self.taken.append(edge)
                if strike := self._strikes.pop(edge, None):
                    asyncio.get_running_loop().call_soon(strike, session)

    # ---- and what is left

    async def ask(self, *asks: Ask) -> list[Transcript]:
        before = len(self.clients.transcripts)
        await self.clients.run(asks, len(asks))
        return self.clients.transcripts[before:]

    async def accounts(self) -> Accounts:
        return await accounts(self.stack.url, self.stack.grpc_address)

    async def checked(self) -> None:
        """After all was mended: every promise, for every request so far."""
        await self.mended()
        await settled(self.accounts, 15.0)  # type: ignore[arg-type]
        self.stack.gateway.driver._brain.check()
        assert not self.stack.gateway.driver._flights
        wrong = check(self.clients.transcripts)
        self.clients.transcripts.clear()
        assert not wrong, "\n".join(wrong)


async def _gone(place: Place) -> None:
    async with within(20.0, f"the end of {place.worker_id}, its link and its server"):
        await place.stack.aclose()


@asynccontextmanager
async def rig(prefill: int = 2, decode: int = 2, **engine: Any) -> AsyncIterator[Rig]:
    """Prefill and decode apart; no worker of the stack itself, but each behind a link of its own."""
    spec = cluster(model("m", "tiny:llama", Role.PREFILL, Role.DECODE), queue_seconds=20.0, silence_seconds=SILENCE)
    counts = {Role.PREFILL: prefill, Role.DECODE: decode}
    places = {f"m-{role}-{i}": Place(f"m-{role}-{i}", role) for role, count in counts.items() for i in range(count)}
    async with running(spec, step_seconds=0.004) as stack, AsyncExitStack() as ends:
        made = Rig(stack, places, **engine)
        for worker_id, place in places.items():
            stack.controller.remove(worker_id)
            await made.until(lambda worker_id=worker_id: worker_id not in stack.gateway.driver.workers)
            await made.revive(worker_id)
            ends.push_async_callback(_gone, place)
        stack.workers.clear()
        await made.mended()
        yield made
