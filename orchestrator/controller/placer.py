"""Replicas are reserved where a plan for all of them has them; where it has none, wherever there is room.

What is reserved nowhere yet is planned anew whenever the machines changed. Nothing fails for want of a plan: then the
machinery chooses, as it does where the plan is wrong about what is free. It has no choice where some of the machines
are out of the gateways' reach: then a replica waits for room on the others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Container, Mapping, Set
from dataclasses import dataclass, field, replace

from orchestrator.controller.kinds import kind_called
from orchestrator.controller.ports import ClusterPort, Order, name_of
from orchestrator.controller.resources import NODE_ID
from orchestrator.core.planning.hosts import (
    ANY_GPU,
    CPU,
    Topology,
    cpu_parts_of,
    gangs_of,
    hosts_by_node,
    kept_of,
    misfits,
    nodes_of,
    owners_of,
    reachable,
    without,
)
from orchestrator.core.planning.owners import Owner, owner_for, selector_of
from orchestrator.core.planning.places import Gang, Unplaced
from orchestrator.core.planning.placing import place
from orchestrator.core.spec import ClusterSpec, Device
from orchestrator.core.types import WorkerAssignment
from orchestrator.telemetry import logs

log = logs.events("controller.placer")
Tell = Callable[[str], None]
NO_ORDERS: Mapping[str, WorkerAssignment] = {}


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    Before what has no place is reserved anywhere it waits ``settle``, so that it takes nothing that others were
    promised, and as what was given back a moment ago may still count as taken. A reservation on a host that Ray finds
    no room on for as long as ``pinned`` won't be met: what Ray knows of its nodes is seconds old at most.
    """

    plan_lasts: float = 1.0  # so that all that start together have one plan
    settle: float = 1.0
    pinned: float = 10.0
    look_again: float = 5.0
    topology: float = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Each slot's hosts, one a stage, or why it has none; neither where there is no plan.

    ``made_at``: loop time. ``elsewhere``: hosts that are no places, as no gateway would reach workers on them.
    ``owners``: those that there are hosts for. ``closing``: hosts that are about to go, and get nothing more.
    """

    made_at: float
    hosts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    elsewhere: int = 0
    owners: frozenset[Owner] = frozenset()
    closing: frozenset[str] = frozenset()
    made: bool = True  # or else it is only what is known without a look at the machines

    def selector(self, order: WorkerAssignment) -> dict[str, str]:
        """By it Ray chooses as the plan would: of its own pool's hosts."""
        own = selector_of(owner_for(order.model, order.role, self.owners), self.owners)
        return {**own, NODE_ID: f"!in({','.join(sorted(self.closing))})"} if self.closing else own


class Placer:
    """Reserves the replicas of a closed specification. All of it runs on one event loop.

    ``seen``: hosts with what is known of them besides.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        cluster: ClusterPort,
        patience: Patience | None = None,
        seen: Callable[[Topology], Topology] = lambda topology: topology,
    ) -> None:
        self._spec = _by_catalogue(spec)
        self._beside: dict[str, WorkerAssignment] = {}  # orders by slot, of all that were reserved
        self._cluster = cluster
        self._patience = patience or Patience()
        self._of = seen
        self._planning = asyncio.Lock()
        self._plan: Plan | None = None
        self._seen: Topology | None = None  # what the plan was made from
        self._promised: dict[str, tuple[str, ...]] = {}  # by slot the host of each device, while it is being reserved
        self._closing = frozenset[str]()

    def respecify(self, spec: ClusterSpec) -> None:
        """Has the next plan be of another specification. What is reserved stays as it is."""
        self._spec = _by_catalogue(spec)
        self._outdate()

    async def close(self, hosts: Set[str]) -> frozenset[str]:
        """Has nothing more be reserved on these hosts; those of before that aren't among them are open again.

        Returns the ones on which nothing is, nor will be.
        """
        self._closing = frozenset(hosts)
        self._outdate()
        plan = await self._newest()
        return plan.closing & self._closing if plan.made else frozenset()

    def _outdate(self) -> None:
        self._seen = None
        if self._plan is not None:
            self._plan = replace(self._plan, made_at=-math.inf)

    async def reserve(self, order: Order, tell: Tell) -> Order:
        """Waits until the order's resources are set aside, however long; returns it with the hosts that were asked for.

        ``tell`` hears why they are not yet.
        """
        if not isinstance(order, WorkerAssignment):
            await self._cluster.reserve(order, tell)
            return order
        slot_id, clock = order.worker_id, asyncio.get_running_loop().time
        self._beside[slot_id] = order
        plan = await self._newest()
        if slot_id in plan.reasons:
            tell(plan.reasons[slot_id])
            await asyncio.sleep(self._patience.settle)
            plan = await self._newest()
        refused: set[tuple[str, ...]] = {()}
        while True:
            hosts = plan.hosts.get(slot_id, ())
            if hosts not in refused:
                order = replace(order, hosts=hosts, selector={})
                met = await self._there(order, tell)
            elif plan.elsewhere:
                tell(plan.reasons.get(slot_id) or f"waits for room; {_needs_bind(plan.elsewhere)}")
                await asyncio.sleep(self._patience.look_again)
                refused, plan = {()}, await self._newest()
                continue
            else:
                order = replace(order, hosts=(), selector=plan.selector(order))
                met = await self._anywhere(order, refused, tell)
            if met:
                return order
            refused.add(order.hosts)
            log.info("reserved_anew", actor=slot_id, epoch=order.epoch, given_up=list(order.hosts))
            given_up_at = clock()
            await self._cluster.remove(name_of(order))
            plan = await self._newest(given_up_at)

    async def _there(self, order: WorkerAssignment, tell: Tell) -> bool:
        """On its hosts; False if there is no room on them."""
        clock = asyncio.get_running_loop().time
        self._promised[order.worker_id] = tuple(host for host in order.hosts for _ in range(order.tensor_parallel))
        try:
            async with asyncio.timeout(None) as limit:

                def heard(why: str) -> None:
                    if limit.when() is None:
                        limit.reschedule(clock() + self._patience.pinned)
                    tell(why)

                await self._cluster.reserve(order, heard)
                return True
        except TimeoutError:
            return False
        finally:
            del self._promised[order.worker_id]

    async def _anywhere(self, order: WorkerAssignment, refused: Container[tuple[str, ...]], tell: Tell) -> bool:
        """Wherever its pool may be and there is room; False once there is a place for it that was not refused, or it
        may be elsewhere than was said."""
        slot_id = order.worker_id
        waiting = asyncio.ensure_future(
            self._cluster.reserve(order, lambda why: tell(self._reason(slot_id) or why)),
        )
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=self._patience.look_again)
                if done:
                    waiting.result()
                    return not await self._torn(order)
                plan = await self._newest()
                if plan.hosts.get(slot_id, ()) not in refused or plan.selector(order) != order.selector:
                    return False
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})

    async def _torn(self, order: WorkerAssignment) -> bool:
        """Whether a stage came to be on several hosts, as a pipeline's can where they are not said."""
        size = order.tensor_parallel
        if size == 1 or order.pipeline_parallel == 1:
            return False
        await self._newest(asyncio.get_running_loop().time())
        hosts = self._seen.reserved.get(order.worker_id, ()) if self._seen else ()
        torn = any(len(set(hosts[first : first + size])) > 1 for first in range(0, len(hosts), size))
        if torn:
            await asyncio.sleep(self._patience.look_again)  # it would be met the same way at once
        return torn

    def _reason(self, slot_id: str) -> str:
        return self._plan.reasons.get(slot_id, "") if self._plan else ""

    async def _newest(self, after: float = 0.0) -> Plan:
        """A plan that is new enough, made after that time; once for all that ask meanwhile, however long it takes."""
        clock = asyncio.get_running_loop().time
        oldest = max(after, clock() - self._patience.plan_lasts)
        async with self._planning:
            if self._plan is None or self._plan.made_at < oldest:
                self._plan = await self._made(clock())
            return self._plan

    async def _made(self, now: float) -> Plan:
        # Before the topology is read: what is met in between is then in one of the two.
        promised = dict(self._promised)
        try:
            async with asyncio.timeout(self._patience.topology):
                topology = self._of(await self._cluster.topology())
            topology = replace(topology, reserved=dict(topology.reserved) | promised)
            topology, closing = _without_closing(topology, self._closing)
            if self._plan is not None and self._seen == topology:
                return replace(self._plan, made_at=now)
            plan = await asyncio.to_thread(planned, self._spec, topology, now, dict(self._beside))
            plan = replace(plan, closing=closing)
        except Exception as error:  # whatever it is, replicas can be reserved without
            log.warning("no_plan", error=error)
            self._seen = None
            last = self._plan or Plan(now)
            return Plan(now, elsewhere=last.elsewhere, owners=last.owners, closing=self._closing, made=False)
        self._seen = topology
        return plan


def planned(
    spec: ClusterSpec, topology: Topology, now: float = 0.0, orders: Mapping[str, WorkerAssignment] = NO_ORDERS
) -> Plan:
    """A place for every slot, with what is reserved where it is. ``orders`` tell of slots that the specification lacks.

    Those hold their places like others, who hold whole GPUs.
    """
    elsewhere = len(topology.hosts)
    topology = reachable(topology, spec)
    elsewhere -= len(topology.hosts)
    nodes = nodes_of(topology, cpu_parts_of(spec, topology))
    gangs = gangs_of(spec, nodes)
    known = {gang.gang_id for gang in gangs}
    lacking = [
        Gang(slot_id, order.model, order.role, (CPU if order.device is Device.CPU else ANY_GPU,))
        for slot_id, order in orders.items()
        if slot_id not in known and slot_id in topology.reserved
    ]
    if lacking:
        topology = without(topology, lacking)
        nodes = nodes_of(topology, cpu_parts_of(spec, topology))
    kept = kept_of(topology, gangs, nodes)
    odd = misfits(topology, gangs, kept)
    if odd:
        topology = without(topology, odd)
        nodes = nodes_of(topology, cpu_parts_of(spec, topology))
        gone = {gang.gang_id for gang in odd}
        gangs = [gang for gang in gangs if gang.gang_id not in gone]
        kept = kept_of(topology, gangs, nodes)
    placement = place(gangs, nodes, kept, movable=False)
    by_node = hosts_by_node(topology)
    return Plan(
        now,
        {placed.gang_id: tuple(by_node[name] for name, _ in placed.stages) for placed in placement.placed},
        {left.gang_id: _words(left, elsewhere) for left in placement.unplaced},
        elsewhere,
        owners_of(topology),
    )


def _without_closing(topology: Topology, closing: frozenset[str]) -> tuple[Topology, frozenset[str]]:
    """The hosts that are about to go left out, and which these are; one on which something is stays all the same."""
    held = {host_id for ids in topology.reserved.values() for host_id in ids}
    gone = closing.intersection(host.host_id for host in topology.hosts) - held
    return replace(topology, hosts=tuple(host for host in topology.hosts if host.host_id not in gone)), gone


def _words(left: Unplaced, elsewhere: int) -> str:
    """Why it has no place."""
    return "; ".join([*(reason.words for reason in left.reasons), *([_needs_bind(elsewhere)] if elsewhere else [])])


def _needs_bind(elsewhere: int) -> str:
    return f"nodes on other machines ({elsewhere}) need bind: node"


def _by_catalogue(spec: ClusterSpec) -> ClusterSpec:
    """With the kinds of GPU called as hosts call theirs."""
    models = [
        replace(
            model,
            pools={
                role: replace(pool, gpu=tuple(dict.fromkeys(map(kind_called, pool.gpu))))
                for role, pool in model.pools.items()
            },
        )
        for model in spec.models
    ]
    return replace(spec, models=tuple(models))
