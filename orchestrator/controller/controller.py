"""Observe -> plan -> apply, again after each change and at least every second, until the cluster is shut down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from orchestrator.config import closed
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.course import Course, Progress
from orchestrator.controller.placer import Patience, Placer
from orchestrator.controller.ports import ClusterPort
from orchestrator.controller.roster import Bounds, Roster
from orchestrator.core import reconcile
from orchestrator.core.errors import ConfigError
from orchestrator.core.rollout import Step
from orchestrator.core.slots import Limits, Observed, Slot, SlotHistory
from orchestrator.core.spec import ClusterSpec
from orchestrator.telemetry import logs
from orchestrator.telemetry.redact import Words

log = logs.events("controller")
_TICK = 1.0  # seconds between looks when nothing happens
_COALESCE = 0.02  # seconds in which changes of many actors become one look


class Controller:
    """Keeps the cluster as specified. ``publish`` gets each new view; it must not block.

    ``clock`` is monotonic seconds. All of it runs on one event loop and waits for nothing but time and its own events.
    ``previous``: the specification that an upgrade under way would go back to. ``turned`` is called whenever ``spec``
    is another one, or an upgrade has ended. A specification that leaves a count to the planner is a ConfigError.
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
        previous: ClusterSpec | None = None,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        closed(assigner.spec)
        self._assigner = assigner
        self._course = Course(assigner, previous)
        self._turned = turned
        self._limits = Limits.of(assigner.spec.controller)
        self._publish = publish
        self._clock = clock
        self._awake = asyncio.Event()
        self._placer = Placer(assigner.spec, cluster, patience)
        self._roster = Roster(
            assigner.spec.name, cluster, self._placer.reserve, clock, self._awake.set, bounds or Bounds()
        )
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
    def previous(self) -> ClusterSpec | None:
        """What it goes back to if it fails to become that; None where it is on no way, or on its way back."""
        return self._course.previous

    @property
    def rollout(self) -> Progress:
        """How far an upgrade is."""
        return self._course.progress

    def upgrade(self, spec: ClusterSpec, *, makes_room: bool = False) -> None:
        """Begins to become another cluster, replica by replica. See ``Course.change`` for what it raises."""
        if self._drain_until is not None:
            raise ConfigError("the cluster is being shut down")
        self._course.change(closed(spec), makes_room=makes_room)
        log.info("upgrade", makes_room=makes_room)
        self._take_course()

    def _take_course(self) -> None:
        spec = self._course.spec
        self._assigner = self._course.assigner
        self._limits = Limits.of(spec.controller)
        self._placer.respecify(spec)
        self._histories = self._course.forgiven(self._histories)
        self._turned()
        self._awake.set()

    def look(self) -> None:
        """Has the loop look now rather than at its next tick."""
        self._awake.set()

    async def run(self) -> None:
        """Returns once the cluster was shut down and nothing of it is left."""
        try:
            wake_at = self._step()
            while not self._ended.is_set():
                await self._pause(wake_at)
                wake_at = self._step()
        finally:
            await self._roster.close()

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
        at = self._course.step(observed.actors, now)
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
        if ending and not observed.actors:
            self._ended.set()
        return plan.wake_at

    def _judge(self, at: Step, plan: reconcile.Plan, now: float) -> None:
        lost = [(removal.actor, removal.reason) for removal in plan.remove if removal.lost]
        spec = self._course.spec
        if self._course.saw(at, lost, self.observed.actors, now):
            log.info("rollout", phase=self._course.progress.phase.value, why=Words(self._course.progress.detail))
            if self._course.spec is not spec:
                self._take_course()
            else:
                self._turned()

    def _start(self, slot: Slot, epoch: int) -> None:
        log.info("start", actor=slot.slot_id, epoch=epoch)
        assigner = self._assigner
        self._roster.start(slot, epoch, lambda: assigner.order(slot, epoch))

    def _drain_seconds(self, now: float) -> float:
        if self._drain_until is None:
            return self._assigner.spec.controller.drain_timeout
        return max(0.0, self._drain_until - now)

    async def _pause(self, wake_at: float | None) -> None:
        limit = _TICK if wake_at is None else min(_TICK, max(_COALESCE, wake_at - self._clock()))
        try:
            async with asyncio.timeout(limit):
                await self._awake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_COALESCE)
        self._awake.clear()
