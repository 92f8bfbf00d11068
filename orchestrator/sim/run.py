"""A whole run: fleet, gateways, clients and faults on one clock."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random

from orchestrator.config import closed
from orchestrator.core import messages as m
from orchestrator.core.brain import MAX_ATTEMPTS, Brain
from orchestrator.core.errors import ConfigError, SegueError
from orchestrator.core.spec import ClusterSpec, ModelSpec, Role
from orchestrator.core.types import WorkerInfo
from orchestrator.sim import faults as fault_forms
from orchestrator.sim.audit import Audit
from orchestrator.sim.carrier import TICK_SECONDS
from orchestrator.sim.clock import Call, Clock
from orchestrator.sim.disturb import Disturber
from orchestrator.sim.faults import Fault
from orchestrator.sim.flight import Desk, Flight
from orchestrator.sim.gateway import Gateway
from orchestrator.sim.measure import Measure, Slo
from orchestrator.sim.network import Link, Network, Weather
from orchestrator.sim.offer import Offer, best_hits
from orchestrator.sim.settings import EngineSettings, engine_settings
from orchestrator.sim.worker import HEARTBEAT_SECONDS, Worker

AT_ONCE_SECONDS = 0.05  # within which a client that doesn't wait comes again
STUCK_SECONDS = 3600.0  # without an arrival or an end: something waits for ever
_BEATS = 10  # heartbeats are looked at in so many groups
_MOMENTS = 240  # looks at the queues in a run, unless
_LOOK_SECONDS = 1e-4  # for each worker lie between them, as each is looked at


@dataclass(frozen=True, slots=True)
class Options:
    """How to run. ``replicas``: of each role, the configuration's own where it is not named.

    ``spread`` and ``noise``: how far engines are off what they should take; None for the default (``settings``).
    ``deadline``: seconds that clients give a request. ``deep``: brains check their books after every step.
    ``retries``: how often a client comes again that was turned away, after as long as it was told and up to half of
    that more, or (``storm``) at once.
    """

    replicas: Mapping[Role, int] = field(default_factory=dict)
    seed: int = 0
    gateways: int = 1
    faults: Sequence[Fault] = ()
    delay: float = 0.0002
    jitter: float = 0.0001
    spread: float | None = None
    noise: float | None = None
    deadline: float | None = None
    slo: Slo = field(default_factory=Slo)
    deep: bool = False
    retries: int = 0
    storm: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to. ``bound``: prompt tokens that one cache without bounds would have saved."""

    measure: Measure
    workers: Sequence[Worker]
    offered: int
    trace_hash: str
    bound: float
    seconds: float  # virtual
    wall_seconds: float
    alerts: int
    taken_out: int  # how often a gateway took a worker out as sick


class Run:
    """One model's pools behind its gateways."""

    def __init__(self, spec: ClusterSpec, model: ModelSpec, offers: Sequence[Offer], options: Options) -> None:
        self.clock = Clock()
        self.measure = Measure(options.slo)
        self.audit = Audit(deep=options.deep)
        self._options = options
        self._offers = offers
        self._flights: list[Flight] = []
        self.silence_seconds = spec.gateway.silence_seconds  # after which a gateway gives a stream up
        seed, share = options.seed, fault_forms.share
        weather = Weather(
            options.delay,
            options.jitter,
            lost=share(options.faults, fault_forms.Kind.LOSE),
            late=share(options.faults, fault_forms.Kind.REORDER),
            leaving=share(options.faults, fault_forms.Kind.LEAVE),
        )
        self.network = Network(self.clock, Random(f"{seed} network"), weather)
        self._clients = Random(f"{seed} clients")
        desk = Desk(
            model.name,
            self.clock,
            self.network,
            self.audit,
            self._ended,
            patience=spec.gateway.queue_seconds + 2 * TICK_SECONDS,
            max_attempts=MAX_ATTEMPTS,
            deadline=options.deadline,
        )
        self.desk = desk
        self.gateways = [
            Gateway(index, Brain(Random(f"{seed} brain {index}"), spec.gateway, (model,)), desk)
            for index in range(options.gateways)
        ]
        self.workers = list(self._fleet(model))
        self._link()

    def _fleet(self, model: ModelSpec) -> Iterator[Worker]:
        engines = Random(f"{self._options.seed} engines")
        index = 0
        for role, pool in model.pools.items():
            settings = engine_settings(model, pool, self._options.spread, self._options.noise)
            for number in range(self._options.replicas.get(role, pool.replicas)):
                worker_id = f"{model.name}-{role}-{number}"
                info = WorkerInfo(worker_id, model.name, role, f"{worker_id}:0", epoch=1, facts=settings.facts)
                yield Worker(index, info, settings, self.clock, self.network, engines, self.measure.gaps)
                index += 1

    def _link(self) -> None:
        for gateway in self.gateways:
            for worker in self.workers:
                link = Link(gateway, worker)
                worker.connect(link)
                gateway.links[worker.info.worker_id] = link

    # ---- the run

    def go(self) -> None:
        """Runs until every request has its outcome and nothing is left at the workers.

        Raises:
            PromiseBroken: the brain or the simulation did what it must not.
        """
        clock, options = self.clock, self._options
        for gateway in self.gateways:
            for link in gateway.links.values():
                gateway.open(link)
            clock.after(TICK_SECONDS * (1 + gateway.index / len(self.gateways)), self._tick, gateway)
        for group in range(_BEATS):
            clock.after(HEARTBEAT_SECONDS * (1 + group / _BEATS), self._beat, self.workers[group::_BEATS])
        last = self._offers[-1].at
        self._step = max(0.25, last / _MOMENTS, len(self.workers) * _LOOK_SECONDS)
        clock.after(self._step, self._moment)
        chance = Random(f"{options.seed} faults")
        disturber = Disturber(self, chance)
        for fault in fault_forms.timed(options.faults, len(self.workers), options.gateways, last, chance):
            disturber.plan(fault)
        self._arrival = Call(self._arrive, None)
        clock.plan(self._offers[0].at, self._arrival)
        clock.run()
        self.audit.end([gateway.brain for gateway in self.gateways], self.workers)

    def _arrive(self, _: object) -> None:
        number = self.measure.arrived
        self.measure.arrived = number + 1
        if number + 1 < len(self._offers):
            self.clock.plan(self._offers[number + 1].at, self._arrival)
        flight = Flight(number, f"r{number}", self._offers[number], self.clock.now)
        self._send(flight)

    def _send(self, flight: Flight) -> None:
        gateways = self.gateways
        gateway = gateways[0] if len(gateways) == 1 else gateways[int(self._clients.random() * len(gateways))]
        leaving = self.network.weather.leaving
        if leaving and self._clients.random() < leaving:
            self.clock.after(self._clients.expovariate(1.0), gateway.leave, flight)
        gateway.arrive(flight)

    def _again(self, flight: Flight, error: SegueError | None) -> bool:
        """Whether a client whose request was turned away comes again."""
        options = self._options
        if flight.tries >= options.retries or error is None or error.retry_after is None:
            return False
        chance = self._clients.random()
        after = AT_ONCE_SECONDS * chance if options.storm else error.retry_after * (1.0 + 0.5 * chance)
        tries = flight.tries + 1
        name = f"r{flight.number}.{tries}"
        self.clock.after(after, self._arrive_again, Flight(flight.number, name, flight.offer, 0.0, tries))
        return True

    def _arrive_again(self, flight: Flight) -> None:
        flight.arrived_at = flight.waits_since = self.clock.now
        self._send(flight)

    def _ended(self, flight: Flight, command: m.End) -> None:
        if command.report.outcome == "rejected":
            self.measure.rejects.append(self.clock.now - flight.arrived_at)
            if self._options.retries and self._again(flight, command.error):
                return
        self.measure.request_ended(flight, command, self.clock.now)
        if self.measure.ended == len(self._offers):
            self.clock.after(self.network.settle_seconds, self._settle, 0)

    def _settle(self, tries: int) -> None:
        """All have ended: what they left at workers goes now, or when its lease ends."""
        lease = max(worker.settings.lease_seconds for worker in self.workers)
        quiet = all(worker.engine.idle for worker in self.workers if worker.alive)
        held = any(link.held_until > self.clock.now for worker in self.workers for link in worker.links)
        if (quiet and not held) or tries > 4 * (lease + 60.0):
            self.clock.stop()
        else:
            self.clock.after(0.25, self._settle, tries + 1)

    # ---- what comes again

    def _tick(self, gateway: Gateway) -> None:
        gateway.tick()
        self.clock.after(TICK_SECONDS, self._tick, gateway)

    def _beat(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.beat()
        self.clock.after(HEARTBEAT_SECONDS, self._beat, workers)

    def _moment(self, _: object) -> None:
        now, measure = self.clock.now, self.measure
        if measure.ended < len(self._offers):
            waiting = sum(gateway.waiting for gateway in self.gateways)
            queued = sum(len(worker.engine.waiting) for worker in self.workers)
            running = sum(len(worker.engine.running) for worker in self.workers)
            measure.moment(now, waiting, queued, running)
            if now - max(measure.last_end, self._offers[-1].at) > STUCK_SECONDS:
                self.clock.stop()
        self.clock.after(self._step, self._moment)


def simulate(spec: ClusterSpec, model: ModelSpec, offers: Sequence[Offer], options: Options) -> Result:
    """Runs ``offers`` on the model's pools.

    Raises:
        ConfigError: the options ask for what there is not, or the model leaves a count to the planner.
        PromiseBroken: the brain or the simulation did what it must not.
    """
    if not offers:
        raise ConfigError("there are no requests to simulate", where="--trace")
    closed(replace(spec, models=(model,)))
    run = Run(spec, model, offers, options)
    with _no_garbage_collection():
        began = time.perf_counter()
        run.go()
        wall = time.perf_counter() - began
    size = run.workers[0].settings.facts.block_size
    prompts = sum(offer.prompt_tokens for offer in offers)
    return Result(
        run.measure,
        run.workers,
        len(offers),
        run.desk.digest.hexdigest(),
        best_hits(offers, size) / prompts,
        run.measure.last_end,
        wall,
        sum(gateway.alerts for gateway in run.gateways),
        run.desk.took_out,
    )


def settings_of(model: ModelSpec) -> Mapping[Role, EngineSettings]:
    """What each of a model's pools is modelled as; ConfigError where the model leaves a count to the planner."""
    closed(ClusterSpec(model.name, (model,)))
    return {role: engine_settings(model, pool, None, None) for role, pool in model.pools.items()}


def shared_out(model: ModelSpec, replicas: int) -> dict[Role, int]:
    """So many replicas for a model's pools, in the configuration's own proportion, at least one each.

    Raises:
        ConfigError: there are fewer replicas than pools.
    """
    if replicas < len(model.pools):
        raise ConfigError(f"{replicas} replicas are too few for {len(model.pools)} pools", where="--replicas")
    total = sum(pool.replicas for pool in model.pools.values())
    roles = list(model.pools)
    shares = {role: max(1, round(replicas * model.pools[role].replicas / total)) for role in roles[:-1]}
    last = max(1, replicas - sum(shares.values()))
    if last + sum(shares.values()) > replicas:
        shares[roles[0]] = replicas - last
    return {**shares, roles[-1]: last}


def routed(model: ModelSpec, policy: str | None) -> ModelSpec:
    """The model with another policy, and that one's default parameters."""
    if policy is None or policy == model.routing.policy:
        return model
    return replace(model, routing=replace(model.routing, policy=policy, parameters={}))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Nothing here makes cycles on the path of a request, and looking for them takes time that grows with the fleet."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
