"""A ``ClusterPort`` in memory, with freeze points: stop any step of any actor exactly there, look, go on.

Held to the behaviour of the real one by ``test_cluster_contract``.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.controller.ports import ActorLost, Memory, Order, belongs, name_of, slot_and_epoch
from orchestrator.controller.resources import NODE_ID
from orchestrator.core.errors import SegueError, StaleEpoch
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.spec import Device
from orchestrator.core.terms import Terms
from orchestrator.core.types import ActorSnapshot, GatewayAssignment, WorkerAssignment, WorkerState

HERE = Host("id-here", "here", gpus=8, gpu="L4", cpus=8)


def slot_of(name: str) -> str:
    return name.rpartition("/")[2].partition("@")[0]


def chosen(selector: Mapping[str, str], host: Host) -> bool:
    """Whether Ray's label selector takes it: VALUE, in(A,B) or !in(A,B), where what has no such label is in nothing."""
    labels = {**host.labels, NODE_ID: host.host_id}

    def takes(word: str, found: str) -> bool:
        if word.startswith("!"):
            return not takes(word[1:], found)
        return found in word.removeprefix("in(").removesuffix(")").split(",")

    return all(takes(word, labels.get(name, "")) for name, word in selector.items())


@dataclass
class Gate:
    """A freeze point: ``reached`` once someone stands before it, passable after ``open``."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> None:
        self.opened.set()

    async def passed(self) -> None:
        self.reached.set()
        await self.opened.wait()


class FakeActor:
    def __init__(self, cluster: FakeCluster, order: Order) -> None:
        self.cluster = cluster
        self.order = order
        self.name = name_of(order)
        self.word = ActorSnapshot(WorkerState.STARTING, stage="loading weights", actor_pid=4711, version=order.version)
        self.drained_for: float | None = None
        self.terms = Terms(self.name)
        self._coming_up: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._dead = asyncio.Event()

    def die(self) -> None:
        self._dead.set()
        if self._coming_up is not None:
            self._coming_up.cancel()

    @property
    def alive(self) -> bool:
        return not self._dead.is_set()

    @property
    def serves(self) -> bool:
        return self.word.state is WorkerState.READY and self.alive

    async def start(self, term: int | None = None) -> None:
        self.cluster.journal.append(("start", self.name))
        self.terms.heed(term)
        if self._coming_up is None:
            self._coming_up = asyncio.create_task(self._come_up())
        await self._unless_dead(asyncio.shield(self._coming_up))

    async def _come_up(self) -> None:
        await self.cluster.pass_gate("start", self.name)
        error = self.cluster.start_errors.get(slot_of(self.name))
        if error is not None:
            self.word = replace(self.word, state=WorkerState.FAILED, detail=str(error))
            raise error
        self.cluster.journal.append(("up", self.name))
        self.word = replace(self.word, state=WorkerState.READY, stage="", address="127.0.0.1:7")

    async def snapshot(self, term: int | None = None) -> ActorSnapshot:
        await self._step("snapshot", term)
        return self.word

    async def drain(self, seconds: float, term: int | None = None) -> None:
        self.terms.heed(term)
        self._note_end()
        self.word = replace(self.word, state=WorkerState.DRAINING)
        self.drained_for = seconds
        await self._step("drain", term)

    async def stop(self, term: int | None = None) -> None:
        await self._step("stop", term)
        self._note_end()
        self._closed.set()

    def _note_end(self) -> None:
        if self.serves:
            self.cluster.ended.append(self.name)

    async def wait_closed(self) -> None:
        await self._unless_dead(self._closed.wait())

    async def _step(self, step: str, term: int | None) -> None:
        self.cluster.journal.append((step, self.name))
        self.terms.heed(term)
        await self._unless_dead(self.cluster.pass_gate(step, self.name))

    async def _unless_dead(self, work: object) -> None:
        working, dying = asyncio.ensure_future(work), asyncio.ensure_future(self._dead.wait())
        try:
            await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED)
            if dying.done():
                raise ActorLost("its process is gone", where=self.name)
            await working
        finally:
            working.cancel()
            dying.cancel()


class FakeHandle:
    """``ActorPort``: an actor as the controller of one term has it."""

    def __init__(self, actor: FakeActor, term: int | None) -> None:
        self._actor = actor
        self._term = term

    async def start(self) -> None:
        await self._actor.start(self._term)

    async def snapshot(self) -> ActorSnapshot:
        return await self._actor.snapshot(self._term)

    async def drain(self, seconds: float) -> None:
        await self._actor.drain(seconds, self._term)

    async def stop(self) -> None:
        await self._actor.stop(self._term)

    async def wait_closed(self) -> None:
        await self._actor.wait_closed()


class Bell:
    """Wakes all that wait for the next ring."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass
class Claims:
    """What controllers leave to each other. ``holder``: who claimed the newest term; none once all is forgotten."""

    terms: int = 0
    holder: FakeCluster | None = None
    memory: Memory | None = None


class FakeCluster:
    """``capacity`` is how many reservations it can meet at a time, beside what its hosts have.

    ``others`` hold GPUs by host; ``unseen`` ones of these are not in the topology yet.
    """

    def __init__(self, capacity: int = 1000, hosts: Iterable[Host] = (HERE,), name: str = "test") -> None:
        self.name = name
        self.capacity = capacity
        self.hosts = {host.host_id: host for host in hosts}
        self.others: Counter[str] = Counter()
        self.unseen: Counter[str] = Counter()
        self.topology_error: Exception | None = None
        self.topology_seconds = 0.0
        self.topologies = 0
        self.orders: dict[str, WorkerAssignment] = {}
        self.reserved: dict[str, tuple[str, ...]] = {}  # the host of each device
        self.waiting: set[str] = set()
        self.actors: dict[str, FakeActor] = {}
        self.start_errors: dict[str, SegueError] = {}
        self.remove_errors: dict[str, SegueError] = {}
        self.journal: list[tuple[str, str]] = []
        self.ended: list[str] = []  # actors that were told to go while they served
        self.doubles: list[str] = []  # actors that were made while another of their slot was alive
        self.claims = Claims()
        self._term = 0  # that was claimed here
        self._gates: dict[tuple[str, str], Gate] = {}
        self._changed = Bell()

    def another(self) -> FakeCluster:
        """The same machines, actors and memory, as another controller has them."""
        twin = copy.copy(self)
        twin._term = 0
        return twin

    def freeze(self, step: str, slot_id: str) -> Gate:
        gate = self._gates[step, slot_id] = Gate()
        return gate

    def open_all(self) -> None:
        for gate in self._gates.values():
            gate.open()

    def actor(self, slot_id: str) -> FakeActor:
        [found] = [actor for name, actor in self.actors.items() if slot_of(name) == slot_id]
        return found

    def kill(self, slot_id: str) -> None:
        """Its process dies, if there is one."""
        for name, actor in self.actors.items():
            if slot_of(name) == slot_id:
                actor.die()

    def steps(self, step: str, slot_id: str) -> int:
        return sum(1 for taken, name in self.journal if taken == step and slot_of(name) == slot_id)

    async def pass_gate(self, step: str, name: str) -> None:
        gate = self._gates.get((step, slot_of(name)))
        if gate is not None:
            await gate.passed()

    async def reserve(self, order: Order, tell: Callable[[str], None]) -> None:
        name = name_of(order)
        if isinstance(order, GatewayAssignment):
            return
        self._require_newest()
        self.waiting.add(name)
        self.orders[name] = order
        while len(self.reserved) >= self.capacity or not self._room(order):
            if len(self.reserved) >= self.capacity:
                tell(f"waits for CPU: {len(self.reserved)} of {self.capacity} in use")
            else:
                tell(f"waits for GPUs on {self._names(order.hosts) or 'any host'}: in use")
            await self._changed.wait()
        self.reserved[name] = self._room(order)  # before the gate, as Ray does it at once
        await self.pass_gate("reserve", name)
        self.waiting.discard(name)

    def _names(self, host_ids: Iterable[str]) -> str:
        return ", ".join(self.hosts[host_id].name if host_id in self.hosts else "none" for host_id in host_ids)

    def _room(self, order: WorkerAssignment) -> tuple[str, ...]:
        """The host of each device; empty if there is no room for all."""
        devices = order.tensor_parallel * order.pipeline_parallel
        if order.hosts:
            wanted = tuple(host_id for host_id in order.hosts for _ in range(order.tensor_parallel))
            return wanted if self._fits(order, wanted) else ()
        able = {
            host_id: host
            for host_id, host in self.hosts.items()
            if (not order.gpu or host.gpu in order.gpu) and chosen(order.selector, host)
        }
        everywhere = [(host_id,) * devices for host_id in able]
        if order.pipeline_parallel > 1:  # device by device, as Ray packs them
            everywhere.append(tuple(host_id for host_id, host in able.items() for _ in range(host.gpus))[:devices])
            everywhere = [wanted for wanted in everywhere if len(wanted) == devices]
        return next((wanted for wanted in everywhere if self._fits(order, wanted)), ())

    def _fits(self, order: WorkerAssignment, wanted: tuple[str, ...]) -> bool:
        if order.device is Device.CPU:
            return all(host_id in self.hosts for host_id in wanted)
        free = Counter({host_id: float(host.gpus) for host_id, host in self.hosts.items()})
        free.subtract(self.others)
        for name, hosts in self.reserved.items():
            for host_id in hosts:
                free[host_id] -= self._size(self.orders[name])
        return all(count * self._size(order) <= free[host_id] for host_id, count in Counter(wanted).items())

    @staticmethod
    def _size(order: WorkerAssignment) -> float:
        return order.share if order.device is Device.GPU else 0

    def changed(self) -> None:
        """Has all that wait look again."""
        self._changed.ring()

    def add_host(self, host: Host) -> None:
        self.hosts[host.host_id] = host
        self.changed()

    def lose_host(self, host_id: str) -> None:
        """It dies, and every actor on it."""
        del self.hosts[host_id]
        for name, hosts in self.reserved.items():
            if host_id in hosts and name in self.actors:
                self.actors[name].die()

    async def topology(self) -> Topology:
        self.topologies += 1
        await asyncio.sleep(self.topology_seconds)
        if self.topology_error is not None:
            raise self.topology_error
        newest: dict[str, str] = {}
        for name in sorted(self.reserved, key=slot_and_epoch):
            if belongs(name, self.name):
                newest[slot_of(name)] = name
        theirs = Counter({host_id: count - self.unseen[host_id] for host_id, count in self.others.items()})
        for name in self.reserved.keys() - newest.values():
            theirs.update(self.reserved[name])
        hosts = tuple(replace(host, gpus=host.gpus - theirs[host_id]) for host_id, host in self.hosts.items())
        return Topology(hosts, {slot_id: self.reserved[name] for slot_id, name in newest.items()})

    async def create(self, order: Order) -> FakeHandle:
        name = name_of(order)
        self.journal.append(("create", name))
        await self.pass_gate("create", name)
        self._require_newest()
        if any(other.alive and slot_of(each) == slot_of(name) for each, other in self.actors.items()):
            self.doubles.append(name)
        actor = self.actors[name] = FakeActor(self, order)
        await self.pass_gate("created", name)
        return FakeHandle(actor, self._term or None)

    async def attach(self, name: str) -> FakeHandle | None:
        actor = self.actors.get(name)
        return FakeHandle(actor, self._term or None) if actor is not None and actor.alive else None

    async def remove(self, name: str) -> None:
        self.journal.append(("remove", name))
        await self.pass_gate("remove", name)
        self._require_newest()
        error = self.remove_errors.pop(slot_of(name), None)
        if error is not None:
            raise error
        actor = self.actors.pop(name, None)
        if actor is not None:
            actor._note_end()
            actor.die()
        self.reserved.pop(name, None)
        self.waiting.discard(name)
        self.changed()

    async def names(self) -> frozenset[str]:
        return frozenset({*self.reserved, *self.waiting, *self.actors})

    async def claim(self) -> int:
        self.claims.terms += 1
        self.claims.holder, self._term = self, self.claims.terms
        return self._term

    async def remember(self, memory: Memory, term: int) -> None:
        await self.pass_gate("remember", f"{self.name}/controller@{memory.epoch}")
        if term != self._term:
            raise StaleEpoch(f"term {term} was not claimed here")
        self._require_newest(bound=True)
        self.claims.memory = memory

    async def recall(self) -> Memory | None:
        return self.claims.memory

    async def forget(self) -> None:
        self.claims.holder, self.claims.terms, self.claims.memory = None, 0, None

    def _require_newest(self, *, bound: bool = False) -> None:
        if (self._term or bound) and self.claims.holder is not self:
            raise StaleEpoch(f"the controller of term {self._term} is not its controller any more", where=self.name)
