"""Carries faults out on a run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.core.errors import ConfigError
from orchestrator.sim.faults import Fault, Kind
from orchestrator.sim.network import RECONNECT_SECONDS, Link
from orchestrator.sim.worker import Worker

if TYPE_CHECKING:
    from random import Random

    from orchestrator.sim.run import Run

RESTART_SECONDS = 10.0  # from a worker's end until its successor is ready
DRAIN_SECONDS = 30.0
FLAP_SECONDS = 2.0
_LOOK_SECONDS = 0.5


class Disturber:
    """Things that happen to the fleet of one run."""

    def __init__(self, run: Run, rng: Random) -> None:
        self._run = run
        self._rng = rng

    def plan(self, fault: Fault) -> None:
        """Has a fault happen at its time. Raises ConfigError where there is no such worker or gateway."""
        worker = self._worker(fault)
        if fault.kind is Kind.PARTITION and fault.gateway >= len(self._run.gateways):
            raise ConfigError(f"there is no gateway {fault.gateway}", where="--faults", hint="they count from 0")
        action = {
            Kind.CRASH: self._crash,
            Kind.DRAIN: self._drain,
            Kind.SLOW: self._slow,
            Kind.FAIL: self._fail,
            Kind.FLAP: self._flap,
            Kind.PARTITION: self._partition,
        }[fault.kind]
        self._run.clock.at(fault.at, action, (worker, fault))

    def _worker(self, fault: Fault) -> Worker:
        workers = self._run.workers
        for worker in workers:
            if worker.info.worker_id == fault.worker:
                return worker
        if fault.worker.isdecimal() and int(fault.worker) < len(workers):
            return workers[int(fault.worker)]
        hint = f"0 to {len(workers) - 1}, or an id like {workers[0].info.worker_id}"
        raise ConfigError(f"there is no worker {fault.worker!r}", where="--faults", hint=hint)

    def _crash(self, what: tuple[Worker, Fault]) -> None:
        worker, _ = what
        if worker.alive:
            self._replace(worker, "its process died")

    def _replace(self, worker: Worker, reason: str) -> None:
        worker.end()
        for link in worker.links:
            link.gateway.lose(link, reason, None)
        self._run.clock.after(RESTART_SECONDS, self._restart, worker)

    def _restart(self, worker: Worker) -> None:
        worker.info = replace(worker.info, epoch=worker.info.epoch + 1)
        worker.start()
        for link in worker.links:
            # Each gateway hears of it at its own time: the watch of the fleet goes around.
            self._run.clock.after(self._rng.random() * RECONNECT_SECONDS, link.gateway.open, link)

    def _drain(self, what: tuple[Worker, Fault]) -> None:
        worker, _ = what
        if worker.alive and not worker.draining:
            worker.drain()
            self._left(worker, worker.info.epoch, self._run.clock.now + DRAIN_SECONDS)

    def _left(self, worker: Worker, epoch: int, until: float) -> None:
        def look(_: object) -> None:
            if not worker.alive or worker.info.epoch != epoch:
                return
            if self._run.clock.now >= until or worker.engine.idle:
                self._replace(worker, "the worker left the fleet")
            else:
                self._run.clock.after(_LOOK_SECONDS, look)

        self._run.clock.after(_LOOK_SECONDS, look)

    def _slow(self, what: tuple[Worker, Fault]) -> None:
        worker, fault = what
        self._paced(worker, fault.factor)
        if fault.seconds:
            self._run.clock.after(fault.seconds, lambda _: self._paced(worker, 1.0 / fault.factor))

    @staticmethod
    def _paced(worker: Worker, factor: float) -> None:
        worker.speed *= factor
        if worker.alive:
            worker.engine.slow_down(factor)

    def _fail(self, what: tuple[Worker, Fault]) -> None:
        worker, fault = what
        worker.failing = fault.share
        if fault.seconds:
            self._run.clock.after(fault.seconds, self._well, worker)

    @staticmethod
    def _well(worker: Worker) -> None:
        worker.failing = 0.0

    def _flap(self, what: tuple[Worker, Fault]) -> None:
        worker, fault = what
        if worker.alive:
            for link in worker.links:
                if link.up:
                    worker.broken(link)
                    link.gateway.lose(link, "the stream broke", RECONNECT_SECONDS)
        if fault.seconds > FLAP_SECONDS:
            left = replace(fault, seconds=fault.seconds - FLAP_SECONDS)
            self._run.clock.after(FLAP_SECONDS, self._flap, (worker, left))

    def _partition(self, what: tuple[Worker, Fault]) -> None:
        worker, fault = what
        link = worker.links[fault.gateway]
        link.gateway.held(link)
        self._run.network.hold(link, fault.seconds)
        silence = self._run.silence_seconds
        if fault.seconds > silence:
            self._run.clock.after(silence, self._silent, (link, link.session))

    def _silent(self, what: tuple[Link, int]) -> None:
        link, session = what
        if session != link.session or not link.known:
            return
        if link.up:
            link.worker.broken(link)
        link.gateway.closed(link, "nothing was heard for too long")
        self._run.clock.after(RECONNECT_SECONDS, link.gateway.open, link)
