"""The controller's table of actors, and the tasks that bring each one up, listen to it and see it off.

An actor's life is one task: reserve -> create -> start -> ready -> until it closes. One that another controller made is
taken up where it stands. Whatever ends a life too early becomes its state and detail; nothing is decided here. ``wake``
is called after each change, ``outdated`` when anything has heard of a newer controller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from orchestrator.controller.ports import ActorLost, ActorPort, ClusterPort, Order, actor_name
from orchestrator.core.errors import SegueError, StaleEpoch, WorkerStartFailed
from orchestrator.core.slots import SILENCE_LIMIT, ObservedActor, Slot
from orchestrator.core.types import ActorSnapshot, WorkerState
from orchestrator.telemetry import logs

T = TypeVar("T")
Reserve = Callable[[Order, Callable[[str], None]], Awaitable[Order]]
log = logs.events("controller.roster")
_LOST = (WorkerState.FAILED, WorkerState.DEAD)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long each step may take and how often to ask, in seconds."""

    create: float = 60.0
    snapshot: float = 5.0
    first_word: float = SILENCE_LIMIT
    ask_starting: float = 0.5
    ask_ready: float = 2.0
    drain_grace: float = 5.0
    stop: float = 20.0
    remove: float = 30.0
    retry: float = 2.0


@dataclass(slots=True, eq=False)
class _Entry:
    seen: ObservedActor
    actor: ActorPort | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    draining: asyncio.Timeout | None = None
    hurried: bool = False


class Roster:
    """All actors of one cluster that exist or are being made. ``clock`` gives the planner's seconds.

    ``reserve`` is ``Placer.reserve``.
    """

    def __init__(
        self,
        name: str,
        cluster: ClusterPort,
        reserve: Reserve,
        clock: Callable[[], float],
        wake: Callable[[], None],
        bounds: Bounds,
        outdated: Callable[[StaleEpoch], None],
    ) -> None:
        self._name = name
        self._cluster = cluster
        self._reserve = reserve
        self._clock = clock
        self._wake = wake
        self._bounds = bounds
        self._outdated = outdated
        self._entries: dict[tuple[str, int], _Entry] = {}

    def observe(self) -> tuple[ObservedActor, ...]:
        """The table as it is now."""
        return tuple(entry.seen for entry in self._entries.values())

    @property
    def keys(self) -> frozenset[tuple[str, int]]:
        """(slot id, epoch) of all that is in the table."""
        return frozenset(self._entries)

    def start(self, slot: Slot, epoch: int, order: Callable[[], Order]) -> None:
        """Begins a life. ``order`` is called within it, so that an order which can't be made is a failed start."""
        now = self._clock()
        seen = ObservedActor(slot, epoch, ActorSnapshot(WorkerState.PENDING), changed_at=now, heard_at=now)
        entry = self._entries[seen.key] = _Entry(seen)
        self._spawn(entry, self._live(entry, lambda: self._come_up(entry, order)))

    def adopt(self, seen: ObservedActor, actor: ActorPort | None, *, mute: bool) -> None:
        """Goes on with what another controller left. ``mute``: it has not said a word yet."""
        entry = self._entries[seen.key] = _Entry(seen, actor)
        if seen.leaving or actor is None:
            self._spawn(entry, self._see_off(entry, None))
        elif seen.state not in _LOST:
            self._spawn(entry, self._live(entry, lambda: self._go_on(entry, actor, mute=mute)))

    def drain(self, key: tuple[str, int], seconds: float) -> None:
        """Sees a serving actor off: what runs may finish within the seconds. The entry goes when all is gone."""
        entry = self._entries[key]
        entry.seen = replace(entry.seen, leaving=True)
        self._enter(entry, WorkerState.DRAINING)
        self._spawn(entry, self._see_off(entry, seconds))

    def hurry(self, seconds: float) -> None:
        """Lets no drain that is under way last longer than the seconds."""
        end = asyncio.get_running_loop().time() + seconds
        for entry in self._entries.values():
            if entry.draining is not None and (entry.draining.when() or end) > end:
                entry.draining.reschedule(end)
                entry.hurried = True

    def remove(self, key: tuple[str, int], lost_because: str = "") -> None:
        """Sees an actor off at once; with a reason, as one that was lost."""
        entry = self._entries[key]
        if lost_because and entry.seen.state not in _LOST:
            self._lose(entry, ActorLost(lost_because))
        entry.seen = replace(entry.seen, leaving=True)
        self._spawn(entry, self._see_off(entry, None))

    async def close(self) -> None:
        """Ends all tasks of this table; the actors stay as they are."""
        tasks = [task for entry in self._entries.values() for task in entry.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, entry: _Entry, up: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await up()
            assert entry.actor is not None  # noqa: S101
            await entry.actor.wait_closed()
            last = await _within(self._bounds.snapshot, entry.actor.snapshot(), "its last account")
            raise ActorLost(last.detail or "it stopped by itself", where=entry.seen.slot.slot_id)
        except StaleEpoch:
            raise
        except Exception as error:  # whatever it is, it is this actor's story and must reach status
            self._lose(entry, error)

    async def _come_up(self, entry: _Entry, write: Callable[[], Order]) -> None:
        order = write()
        entry.seen = replace(entry.seen, snapshot=replace(entry.seen.snapshot, version=order.version))
        order = await self._reserve(order, lambda why: self._tell(entry, why))
        self._enter(entry, WorkerState.STARTING)
        entry.actor = await _within(self._bounds.create, self._cluster.create(order), "making its actor")
        self._spawn(entry, self._listen(entry, entry.actor))
        await self._until_ready(entry, entry.actor)

    async def _go_on(self, entry: _Entry, actor: ActorPort, *, mute: bool) -> None:
        if mute:
            word = await _within(self._bounds.first_word, self._first_word(actor), "its first word to this controller")
            entry.seen = replace(entry.seen, snapshot=replace(word, state=entry.seen.state))
            if word.state in _LOST:
                raise ActorLost(word.detail, where=entry.seen.slot.slot_id)
            if word.state is WorkerState.DRAINING:
                self._enter(entry, WorkerState.DRAINING)
        self._spawn(entry, self._listen(entry, actor))
        if entry.seen.state is WorkerState.STARTING:
            await self._until_ready(entry, actor)

    async def _first_word(self, actor: ActorPort) -> ActorSnapshot:
        while True:
            try:
                async with asyncio.timeout(self._bounds.snapshot):
                    return await actor.snapshot()
            except TimeoutError:
                await asyncio.sleep(0)

    async def _until_ready(self, entry: _Entry, actor: ActorPort) -> None:
        await actor.start()
        word = await _within(self._bounds.snapshot, actor.snapshot(), "its first account")
        entry.seen = replace(entry.seen, snapshot=word, ready_at=self._clock() - word.ready_for)
        self._enter(entry, WorkerState.READY)
        log.info("ready", actor=entry.seen.slot.slot_id, epoch=entry.seen.epoch, address=word.address)

    async def _listen(self, entry: _Entry, actor: ActorPort) -> None:
        while True:
            starting = entry.seen.state is WorkerState.STARTING
            await asyncio.sleep(self._bounds.ask_starting if starting else self._bounds.ask_ready)
            try:
                async with asyncio.timeout(self._bounds.snapshot):
                    word = await actor.snapshot()
            except TimeoutError:
                continue  # reconcile counts its silence from heard_at
            except ActorLost:
                return  # its life hears of the loss, with the reason, from wait_closed
            except StaleEpoch:
                raise
            except Exception as error:
                log.warning("no_account", error=error, actor=entry.seen.slot.slot_id)
                continue
            self._hear(entry, word)

    def _hear(self, entry: _Entry, word: ActorSnapshot) -> None:
        """Takes the actor's word for everything but its state, save where a ready one says that it is that no more."""
        state = entry.seen.state
        if state in _LOST:
            return  # spoken before the loss; the loss's own detail stays
        last, known = entry.seen.snapshot, replace(word, state=state)
        changed = replace(last, load=known.load) != known  # a new load can wait for the next tick
        entry.seen = replace(entry.seen, snapshot=known, heard_at=self._clock())
        if state is WorkerState.READY and word.state in (WorkerState.DRAINING, *_LOST):
            self._enter(entry, WorkerState.DRAINING if word.state is WorkerState.DRAINING else WorkerState.DEAD)
        elif changed:
            self._wake()

    def _tell(self, entry: _Entry, why: str) -> None:
        entry.seen = replace(entry.seen, snapshot=replace(entry.seen.snapshot, stage=why))
        self._wake()

    def _enter(self, entry: _Entry, state: WorkerState, detail: str = "") -> None:
        now, last = self._clock(), entry.seen.snapshot
        stage = "" if state is WorkerState.STARTING else last.stage  # till then it told why its resources were missing
        snapshot = replace(last, state=state, stage=stage, detail=detail or last.detail)
        entry.seen = replace(entry.seen, snapshot=snapshot, changed_at=now, heard_at=now)
        self._wake()

    def _lose(self, entry: _Entry, error: Exception) -> None:
        if entry.seen.leaving:
            return  # it was told to go
        came_up = entry.seen.ready_at is not None
        log.warning("lost", error=error, actor=entry.seen.slot.slot_id, epoch=entry.seen.epoch, came_up=came_up)
        detail = str(error) if isinstance(error, SegueError) else f"{type(error).__name__}: {error}"
        self._enter(entry, WorkerState.DEAD if came_up else WorkerState.FAILED, detail)

    async def _see_off(self, entry: _Entry, drain_seconds: float | None) -> None:
        me, name = asyncio.current_task(), entry.seen.slot.slot_id
        answers = entry.seen.state is not WorkerState.DEAD
        if drain_seconds is not None and entry.actor is not None:
            entry.draining = asyncio.timeout(drain_seconds + self._bounds.drain_grace)
            drained = await self._try("drain", name, entry.draining, entry.actor.drain(drain_seconds))
            answers = drained or entry.hurried
            entry.draining = None
        others = [task for task in entry.tasks if task is not me]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=self._bounds.create)
        if entry.actor is not None and answers:
            await self._try("stop", name, asyncio.timeout(self._bounds.stop), entry.actor.stop())
        full_name = actor_name(self._name, *entry.seen.key)
        gone = False
        while not gone:
            gone = await self._try(
                "remove", name, asyncio.timeout(self._bounds.remove), self._cluster.remove(full_name)
            )
            await asyncio.sleep(0 if gone else self._bounds.retry)
        del self._entries[entry.seen.key]
        self._wake()

    async def _try(self, step: str, name: str, limit: asyncio.Timeout, work: Coroutine[Any, Any, None]) -> bool:
        """A step that may fail because the other end is already gone or stuck; the steps after it do without."""
        try:
            async with limit:
                await work
        except ActorLost:
            return True
        except StaleEpoch:
            raise
        except TimeoutError:
            log.warning("step_cut_short", step=step, actor=name)
        except Exception as error:
            log.warning("step_failed", error=error, step=step, actor=name)
        else:
            return True
        return False

    def _spawn(self, entry: _Entry, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        entry.tasks.add(task)
        task.add_done_callback(lambda done: self._ended(entry, done))
        return task

    def _ended(self, entry: _Entry, task: asyncio.Task[None]) -> None:
        entry.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StaleEpoch):
            self._outdated(error)


async def _within(seconds: float, step: Coroutine[Any, Any, T], what: str) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await step
    except TimeoutError:
        raise WorkerStartFailed(f"{what} took longer than {seconds:g} s") from None
