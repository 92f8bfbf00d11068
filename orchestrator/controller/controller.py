"""Observe -> plan -> apply, again after each change and at least every second, until the cluster is shut down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace

from orchestrator.config import closed, digest, dumps
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.course import aim, resumed
from orchestrator.controller.finding import find
from orchestrator.controller.placer import Patience, Placer
from orchestrator.controller.ports import AsItIs, ClusterPort, Ground, Memory
from orchestrator.controller.roster import Bounds, Roster
from orchestrator.core import adoption, reconcile
from orchestrator.core.changeable import taken_over
from orchestrator.core.course import Progress
from orchestrator.core.errors import ConfigError, NotKept, StaleEpoch
from orchestrator.core.rollout import PoolKey, Step
from orchestrator.core.slots import Limits, Observed, Slot, SlotHistory, slots_of
from orchestrator.core.spec import ClusterSpec
from orchestrator.core.worker_groups import Wanted, wanted_of
from orchestrator.telemetry import logs
from orchestrator.telemetry.redact import Words

log = logs.events("controller")
_TICK = 1.0  # seconds between looks when nothing happens
_COALESCE = 0.02  # seconds in which changes of many actors become one look
_REMEMBERING = 10.0  # seconds
_ANSWERING = 8.0  # seconds; whoever asked for an upgrade has ten
_STRANGERS = 10.0  # seconds after a takeover, in which all that its predecessor asked of Ray has come to be


class Controller:
    """Keeps the cluster as specified. ``publish`` gets each new view; it must not block.

    ``clock`` is monotonic seconds. All of it runs on one event loop and waits for nothing but time and its own events.
    ``memory``: what the one before left, where there was one. ``ground`` makes machines, where something does.
    ``turned`` is called whenever ``spec`` is another one, or an upgrade has ended. A specification that leaves a count
    to the planner is a ConfigError.
    """

    def __init__(
        self,
        assigner: Assigner,
        cluster: ClusterPort,
        publish: Callable[[Observed, bool], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        bounds: Bounds | None = None,
        patience: Patience | None = None,
        memory: Memory | None = None,
        turned: Callable[[], None] = lambda: None,
        ground: Ground | None = None,
    ) -> None:
        closed(assigner.spec)
        self._assigner = assigner
        left = memory or Memory("")
        self._course = resumed(assigner, left)
        self._turned = turned
        self._limits = Limits.of(assigner.spec.controller)
        self._publish = publish
        self._clock = clock
        self._awake = asyncio.Event()
        self._ground = ground or AsItIs()
        self._placer = Placer(assigner.spec, cluster, patience, self._ground.seen)
        self._bounds = bounds or Bounds()
        self._roster = Roster(
            assigner.spec.name, cluster, self._placer.reserve, clock, self._awake.set, self._bounds, self._step_down
        )
        self._cluster = cluster
        self._at: Step | None = None  # what the last plan was made of
        self._term = 0
        self._outdated: StaleEpoch | None = None
        self._began_ms = left.began_ms
        self._kept: Memory | None = None
        self._strangers_at: float | None = None
        self._memory = self._to_remember()
        self._remembered = asyncio.Event()
        self._epoch = 0
        self._histories: Mapping[str, SlotHistory] = {}
        self._drain_until: float | None = None
        self._ended = asyncio.Event()

    @property
    def observed(self) -> Observed:
        """The cluster as it is known now."""
        return Observed(self._epoch, self._roster.observe(), self._histories)

    @property
    def spec(self) -> ClusterSpec:
        """What the cluster is, or is on its way to be."""
        return self._course.spec

    @property
    def expected(self) -> ClusterSpec:
        """What has to be there for the cluster to be ready."""
        return self._course.expected

    @property
    def previous(self) -> ClusterSpec | None:
        """What it goes back to if it fails to become that; None where it is on no way, or on its way back."""
        return self._course.previous

    @property
    def rollout(self) -> Progress:
        """How far an upgrade is."""
        return self._course.progress

    @property
    def wanted(self) -> Wanted | None:
        """The replicas that there are to be now; None while nobody knows, or they are all to go."""
        if self._at is None or self._strangers_at is not None or self._drain_until is not None:
            return None
        return wanted_of(self.spec, self._at.slots, self._roster.observe())

    async def close(self, hosts: Set[str]) -> frozenset[str]:
        """See ``Placer.close``."""
        return await self._placer.close(hosts)

    def upgrade(self, spec: ClusterSpec, *, makes_room: bool = False, full: Iterable[PoolKey] = ()) -> None:
        """Begins to become another cluster, replica by replica. ``full`` are pools that have no room for a spare.

        Raises:
            ConfigError: it can't be had while the cluster runs, or another change is under way.
        """
        if self._drain_until is not None:
            raise ConfigError("the cluster is being shut down")
        new = taken_over(self.spec, closed(spec))
        if self._course.turns_back_for(digest(new)):
            self._course.turn_back("that was asked for")
        else:
            self._course.change(aim(replace(self._assigner, spec=new), strict=True, makes_room=makes_room), full)
        log.info("upgrade", makes_room=makes_room)
        self._take_course()
        self._publish(self.observed, False)  # whoever asked must not see the end of the one before

    def _take_course(self) -> None:
        spec = self._course.spec
        self._assigner = replace(self._assigner, spec=spec)
        self._limits = Limits.of(spec.controller)
        self._placer.respecify(spec)
        self._histories = self._course.forgiven(self._histories)
        self._turn()
        self._awake.set()

    def _turn(self) -> None:
        self._memory = self._to_remember()
        self._remembered.clear()
        self._turned()

    def _to_remember(self) -> Memory:
        course, previous = self._course, dumps(self.previous) if self.previous is not None else ""
        return Memory(
            dumps(self.spec),
            previous,
            listen=self._assigner.fleet_address,
            began_ms=self._began_ms,
            makes_room=course.aim.goal.makes_room,
            back=course.back,
        )

    async def remembered(self, within: float = _ANSWERING) -> None:
        """Returns once whoever replaces this controller would go on with what it was asked for till now.

        Raises:
            NotKept: that can't be had in time; it goes on by itself once it can.
        """
        try:
            async with asyncio.timeout(within):
                await self._remembered.wait()
        except TimeoutError:
            what = f"Ray's store has not taken it within {within:g} s, and nothing is replaced until it does"
            hint = "it begins by itself then; is the node well that Ray's head is on?"
            raise NotKept(what, where=f"cluster {self.spec.name}", hint=hint) from None

    def look(self) -> None:
        """Has the loop look now rather than at its next tick."""
        self._awake.set()

    async def take_over(self, term: int, epoch: int = 0) -> None:
        """Puts all that there is of the cluster into the table, as it is, and publishes it; before ``run``.

        ``term`` was claimed; ``epoch`` is the one that was remembered. Raises StaleEpoch.
        """
        self._term = term
        await self._adopt(epoch)
        self._strangers_at = self._clock() + _STRANGERS
        self._publish(self.observed, False)

    async def _adopt(self, epoch: int) -> None:
        found = await find(self._cluster, self._bounds.snapshot, self._roster.keys)
        known = [*slots_of(self.spec), *(slots_of(self.previous) if self.previous is not None else ())]
        adopted = adoption.adopt((sighting for sighting, _ in found), known, epoch, self._clock())
        self._epoch, self._histories = adopted.epoch, {**adopted.histories, **self._histories}
        for seen, (sighting, actor) in zip(adopted.actors, found, strict=True):
            log.info("adopt", actor=seen.slot.slot_id, epoch=seen.epoch, state=seen.state.value, leaving=seen.leaving)
            self._roster.adopt(seen, actor, mute=sighting.word is None)

    async def _adopt_strangers(self) -> None:
        """What the last controller had under way in Ray may have come to be after everything was looked for."""
        if self._strangers_at is None or self._clock() < self._strangers_at:
            return
        self._strangers_at = None
        try:
            await self._adopt(self._epoch)
        except StaleEpoch:
            raise
        except Exception as error:
            log.warning("strangers_not_looked_for", error=error)
            self._strangers_at = self._clock() + _STRANGERS

    async def run(self) -> None:
        """Returns once the cluster was shut down and nothing of it is left.

        Raises StaleEpoch once there is a newer controller; then it has ended nothing, and gives no more orders.
        """
        try:
            wake_at: float | None = None
            while not self._ended.is_set():
                await self._adopt_strangers()
                if await self._number_the_next():
                    wake_at = self._step()
                await self._pause(wake_at)
        finally:
            await self._roster.close()

    def _step_down(self, error: StaleEpoch) -> None:
        self._outdated = self._outdated or error
        self._awake.set()

    async def _number_the_next(self) -> bool:
        """What runs, and the number of the next plan that changes something, are remembered before they are acted on.

        False where that can't be had now: then nothing may be changed.
        """
        if self._outdated is not None:
            raise self._outdated
        # Again where an upgrade was asked for meanwhile.
        while (memory := replace(self._memory, epoch=self._epoch + 1)) != self._kept:
            try:
                async with asyncio.timeout(_REMEMBERING):
                    await self._cluster.remember(memory, self._term)
            except StaleEpoch:
                raise
            except Exception as error:  # Ray's store is away: workers and gateways go on as they are
                log.warning("not_remembered", error=error, epoch=memory.epoch)
                return False
            self._kept = memory
        self._remembered.set()
        return True

    async def shutdown(self, drain_seconds: float) -> None:
        """Gateways, then workers, drain within the seconds, all in all; returns when nothing is left.

        May be called again meanwhile, to hurry.
        """
        self._drain_until = self._clock() + drain_seconds
        self._roster.hurry(drain_seconds)
        log.info("shutdown", drain_seconds=drain_seconds)
        self._awake.set()
        await self._ended.wait()

    def _step(self) -> float | None:
        """One look, one plan, all its orders given; returns when time alone will call for the next."""
        observed, now = self.observed, self._clock()
        ending = self._drain_until is not None
        at = self._at = self._course.step(observed.actors, now)
        plan = reconcile.plan(() if ending else at.slots, observed, now, self._limits, replace=at.replace, stay=at.stay)
        self._epoch, self._histories = plan.epoch, plan.histories
        for removal in plan.remove:
            log.info("remove", actor=removal.actor.slot.slot_id, epoch=removal.actor.epoch, lost=removal.lost)
            self._roster.remove(removal.actor.key, removal.reason if removal.lost else "")
        for actor in plan.drain:
            log.info("drain", actor=actor.slot.slot_id, epoch=actor.epoch)
            self._roster.drain(actor.key, self._drain_seconds(now))
        for slot in plan.start:
            self._start(slot, plan.epoch)
        if not ending:
            self._judge(at, plan, now)
        self._publish(self.observed, ending)
        self._ground.look()
        if ending and not observed.actors:
            self._ended.set()
        return plan.wake_at

    def _judge(self, at: Step, plan: reconcile.Plan, now: float) -> None:
        lost = [(removal.actor, removal.reason) for removal in plan.remove if removal.lost]
        spec = self._course.spec
        if self._course.saw(at, lost, self.observed.actors, now, self._ground.room):
            log.info("rollout", phase=self._course.progress.phase.value, why=Words(self._course.progress.detail))
            if self._course.spec is not spec:
                self._take_course()
            else:
                self._turn()

    def _start(self, slot: Slot, epoch: int) -> None:
        log.info("start", actor=slot.slot_id, epoch=epoch)
        assigner = self._assigner
        self._roster.start(slot, epoch, lambda: assigner.order(slot, epoch))

    def _drain_seconds(self, now: float) -> float:
        if self._drain_until is None:
            return self._assigner.spec.controller.drain_timeout
        return max(0.0, self._drain_until - now)

    async def _pause(self, wake_at: float | None) -> None:
        if self._ended.is_set():
            return
        limit = _TICK if wake_at is None else min(_TICK, max(_COALESCE, wake_at - self._clock()))
        try:
            async with asyncio.timeout(limit):
                await self._awake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_COALESCE)
        self._awake.clear()
