"""Requests under faults all along: a load, a striker beside it, and the checker once both are through."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from signal import SIGCONT, SIGSTOP
from traceback import format_exception

import grpc
import grpc.aio
import psutil

from orchestrator.core import errors
from orchestrator.proto import cluster_pb2 as pb
from orchestrator.proto import cluster_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from tests.chaos.checker import Accounts, Window, accounts, check, settled
from tests.chaos.clients import CHANNEL, Clients, request_id
from tests.chaos.faults import DECODE, GATEWAY, KINDS, NODE, PREFILL, Fault, Kind, choose, serving
from tests.chaos.ground import GATEWAYS, MODEL, Ground
from tests.chaos.transcript import Ask, Transcript, story

AFTERMATH = 5.0  # seconds after a gateway's loss in which connections to it may still turn out to be broken
SOON = 3.0  # seconds for an answer of a process that may be stopped
WHOLE_SECONDS = 120.0  # until all that was lost is replaced
NOBODY_SECONDS = 0.5


@dataclass
class Struck:
    """A fault and when it was. ``left``: others of its sort that had not been struck themselves."""

    fault: Fault
    began: float
    ended: float = 0.0
    left: int = 0


@dataclass
class Outcome:
    """What a campaign came to."""

    seconds: float
    transcripts: list[Transcript]
    struck: list[Struck]
    wrong: list[str]
    accounts: Accounts
    windows: list[Window] = field(default_factory=list)


class Campaign:
    """``strike``: kinds that are wanted, in this order first, then at random until the load is through."""

    def __init__(
        self,
        ground: Ground,
        seed: int,
        every: float,
        kinds: tuple[Kind, ...] = KINDS,
        first: Iterable[Kind] = (),
        most_seconds: float = 1800.0,
    ) -> None:
        self._most_seconds = most_seconds
        self._ground = ground
        self._rng = Random(seed)
        self._every = every
        self._kinds = kinds
        self.first = list(first)  # those that have not struck yet
        self._busy: dict[int, float] = {}  # process -> until when it is let be
        self._stopped: set[asyncio.Task[None]] = set()
        self.struck: list[Struck] = []
        self.clients = Clients(ground.cluster.url, ground.cluster.grpc, MODEL)

    async def run(self, asks: Iterable[Ask], at_a_time: int) -> Outcome:
        began = time.monotonic()
        load = asyncio.create_task(self.clients.run(asks, at_a_time))
        striker = asyncio.create_task(self._strike_until(load))
        await asyncio.wait([load], timeout=self._most_seconds)
        in_time = load.done()
        late = [] if in_time else [await self._told_of(one) for one in list(self.clients.open.values())]
        load.cancel()
        parts = await asyncio.gather(load, striker, return_exceptions=True)
        seconds = time.monotonic() - began
        await asyncio.gather(*self._stopped)
        windows = [_window(each) for each in self.struck if each.fault.kind.breaks_connections]
        stops = [
            Window(each.began, each.ended)
            for each in self.struck
            if each.fault.kind.sort == GATEWAY and each.fault.kind.signal is SIGSTOP
        ]
        wrong = check(self.clients.transcripts, windows, stops)
        wrong[:0] = [f"not through after {self._most_seconds:g} s: {each}" for each in late]
        wrong[:0] = ["".join(format_exception(part)) for part in parts if isinstance(part, BaseException) and in_time]
        found = Accounts()
        try:
            found = await self._whole()
        except AssertionError as error:
            wrong.append(str(error))
        wrong += await self._left_behind()
        return Outcome(seconds, self.clients.transcripts, self.struck, wrong, found, windows)

    async def strike_until(self, load: asyncio.Task[None]) -> None:
        """Faults until the load is through; those that are stopped go on again."""
        await self._strike_until(load)
        await asyncio.gather(*self._stopped)

    async def whole(self) -> Accounts:
        """Everyone is there again, and nothing of any request is left; AssertionError with what is."""
        return await self._whole()

    async def status(self) -> pb.ClusterStatus | None:
        """The word of whichever gateway takes the call; None where that one is stopped."""
        address = self._ground.cluster.grpc
        async with grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            with suppress(grpc.aio.AioRpcError):
                return await cluster_pb2_grpc.ClusterStub(channel).Status(pb.StatusRequest(), timeout=SOON)
        return None

    async def _told_of(self, one: Transcript) -> str:
        """What its client and gateways know of a request that does not end."""
        told = [story(one, time.monotonic())]
        asked = pb.ExplainRequest(request_id=request_id(one.ask))
        for _ in range(4 * GATEWAYS):
            async with grpc.aio.insecure_channel(self._ground.cluster.grpc, options=CHANNEL) as channel:
                with suppress(grpc.aio.AioRpcError):
                    told.append(str(await cluster_pb2_grpc.ClusterStub(channel).Explain(asked, timeout=SOON)))
        return "\n".join(dict.fromkeys(told))

    # ---- faults

    async def _strike_until(self, load: asyncio.Task[None]) -> None:
        while not load.done():
            await asyncio.wait([load], timeout=self._rng.uniform(0.5, 1.5) * self._every)
            if load.done():
                return
            found = await self._next()
            if found is not None and not load.done():
                self._strike(*found)

    async def _next(self) -> tuple[Fault, int] | None:
        """What strikes, and how many of its sort are then left."""
        status = await self.status()
        if status is None:
            return None
        there, now = serving(status), time.monotonic()
        there[NODE] = self._spare_nodes()
        busy = {pid for pid, until in self._busy.items() if until > now}
        wanted = tuple(self.first[:1]) or self._kinds
        whole = sum(len(there[sort]) for sort in (DECODE, PREFILL, GATEWAY)) == self._ground.size - 1
        fault = choose(there, busy, self._rng, wanted, whole=whole)
        if fault is None or not self._ground.owns(fault.pid):
            return None
        # The status may still name those that were killed a moment ago.
        gone = {fault.pid, *(each.fault.pid for each in self.struck if each.fault.kind.signal is not SIGSTOP), *busy}
        return fault, len(set(there[fault.kind.sort].values()) - gone)

    def _spare_nodes(self) -> dict[str, int]:
        """Those that may go: not the head."""
        raylets = self._ground.raylets()
        return {f"node {each.pid}": each.pid for each in raylets[1:]}

    def _strike(self, fault: Fault, left: int) -> None:
        now = time.monotonic()
        struck = Struck(fault, now, left=left)
        self._busy[fault.pid] = now + fault.seconds + 5.0  # its end may be told a little later
        try:
            os.kill(fault.pid, fault.kind.signal)
        except ProcessLookupError:
            return
        self.struck.append(struck)
        if self.first:
            del self.first[0]
        if fault.kind.signal is SIGSTOP:
            task = asyncio.create_task(self._go_on(struck))
            self._stopped.add(task)
            task.add_done_callback(self._stopped.discard)
        elif fault.kind.sort == NODE:
            self._ground.nodes.add()

    async def _go_on(self, struck: Struck) -> None:
        try:
            await asyncio.sleep(struck.fault.seconds)
        finally:
            struck.ended = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(struck.fault.pid, SIGCONT)

    # ---- afterwards

    async def _whole(self) -> Accounts:
        """Everyone is there again, and nothing of any request is left."""
        began = time.monotonic()
        while not await self._complete():
            assert time.monotonic() - began < WHOLE_SECONDS, f"not whole after {WHOLE_SECONDS:g} s"
            await asyncio.sleep(NOBODY_SECONDS)
        url, rpc = self._ground.cluster.url, self._ground.cluster.grpc
        return await settled(lambda: accounts(url, rpc, GATEWAYS), 30.0)  # type: ignore[arg-type,return-value]

    async def _complete(self) -> bool:
        status = await self.status()
        if status is None or not status.ready:
            return False
        there = serving(status)
        # The controller is not lost here, so that this leaves it out.
        return sum(len(there[sort]) for sort in (DECODE, PREFILL, GATEWAY)) == self._ground.size - 1

    async def _left_behind(self) -> list[str]:
        """Processes and reservations that nobody needs."""
        found = []
        status = await self.status()
        if status is not None:
            known = {pid for sort in serving(status).values() for pid in sort.values()}
            known |= {each.engine_pid for model in status.models for pool in model.pools for each in pool.workers}
            strays = [each for each in self._ground.actors() if each.pid not in known]
            found += [f"a process that nobody knows of: {_command(each)}" for each in strays]
            slots = {each.id for model in status.models for pool in model.pools for each in pool.workers}
            async with grpc.aio.insecure_channel(status.controller.address) as channel:
                reply = await fleet_pb2_grpc.FleetStub(channel).Topology(fleet_pb2.TopologyRequest(), timeout=20)
            reserved = set(reply.reserved)
            found += [f"a reservation that nobody needs: {each}" for each in sorted(reserved - slots)]
        return found


def _command(process: psutil.Process) -> str:
    try:
        with process.oneshot():
            since = time.time() - process.create_time()
            return f"{process.pid} {' '.join(process.cmdline())} ({process.status()}, for {since:.0f} s)"
    except psutil.Error:
        return "that has just ended"


def _window(struck: Struck) -> Window:
    return Window(struck.began - 0.1, max(struck.began, struck.ended) + AFTERMATH)


def pauses(outcome: Outcome, name: str, alone: bool = False) -> list[float]:
    """How long streams stood still that a fault of this kind fell upon, seconds, sorted: those that others of its sort
    could take over, or (``alone``) those of which one of the faults in that time left nobody to."""
    struck = [each for each in outcome.struck if each.fault.kind.name == name]
    found = []
    for gap in (gap for one in outcome.transcripts for attempt in one.attempts for gap in attempt.gaps):
        under = [each for each in struck if gap.began <= each.began <= gap.began + gap.seconds]
        if under and any(not each.left for each in under) is alone:
            found.append(gap.seconds)
    return sorted(found)


def codes(outcome: Outcome) -> dict[str, int]:
    """How many requests ended how."""
    counts: dict[str, int] = {}
    for one in outcome.transcripts:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    return counts


LOSSES = {errors.WorkerLost.code, errors.NotReady.code, errors.ClusterFull.code, errors.Overloaded.code}
