"""Observe -> plan -> apply, again after each change and at least every second, until the cluster is shut down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from orchestrator.config import closed
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.placer import Patience, Placer
from orchestrator.controller.ports import ClusterPort
from orchestrator.controller.roster import Bounds, Roster
from orchestrator.core import reconcile
from orchestrator.core.slots import Limits, Observed, Slot, SlotHistory, slots_of
from orchestrator.telemetry import logs

log = logs.events("controller")
_TICK = 1.0  # seconds between looks when nothing happens
_COALESCE = 0.02  # seconds in which changes of many actors become one look


class Controller:
    """Keeps the cluster as specified. ``publish`` gets each new view; it must not block.

    ``clock`` is monotonic seconds. All of it runs on one event loop and waits for nothing but time and its own events.
    A specification that leaves a count to the planner is a ConfigError.
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
    ) -> None:
        self._assigner = assigner
        self._slots = slots_of(closed(assigner.spec))
        self._limits = Limits.of(assigner.spec.controller)
        self._publish = publish
        self._clock = clock
        self._awake = asyncio.Event()
        reserve = Placer(assigner.spec, cluster, patience).reserve
        self._roster = Roster(assigner.spec.name, cluster, reserve, clock, self._awake.set, bounds or Bounds())
        self._epoch = 0
        self._histories: Mapping[str, SlotHistory] = {}
        self._drain_until: float | None = None
        self._ended = asyncio.Event()

    @property
    def observed(self) -> Observed:
        """The cluster as it is known now."""
        return Observed(self._epoch, self._roster.observe(), self._histories)

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
        plan = reconcile.plan(() if ending else self._slots, observed, now, self._limits)
        self._epoch, self._histories = plan.epoch, plan.histories
        for removal in plan.remove:
            log.info("remove", actor=removal.actor.slot.slot_id, epoch=removal.actor.epoch, lost=removal.lost)
            self._roster.remove(removal.actor.key, removal.reason if removal.lost else "")
        for actor in plan.drain:
            log.info("drain", actor=actor.slot.slot_id, epoch=actor.epoch)
            self._roster.drain(actor.key, self._drain_seconds(now))
        for slot in plan.start:
            self._start(slot, plan.epoch)
        self._publish(self.observed, ending)
        if ending and not observed.actors:
            self._ended.set()
        return plan.wake_at

    def _start(self, slot: Slot, epoch: int) -> None:
        log.info("start", actor=slot.slot_id, epoch=epoch)
        self._roster.start(slot, epoch, lambda: self._assigner.order(slot, epoch))

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
