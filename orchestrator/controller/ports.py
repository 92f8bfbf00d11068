"""What the controller asks of the machinery that runs actors. ``ray_cluster`` is the real one; tests bring a fake.

One contract suite (tests/controller/test_cluster_contract.py) holds both to the same behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core.errors import SegueError
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.rollout import AS_IT_IS, Room
from orchestrator.core.types import ActorSnapshot, GatewayAssignment, WorkerAssignment

Order = WorkerAssignment | GatewayAssignment


@dataclass(frozen=True, slots=True)
class Memory:
    """What a controller leaves to the one after it.

    ``spec_json``: the closed ClusterSpec that runs (``config.dumps``); ``previous_json``: the one before, if there was
    one. ``epoch``: of the last plan that changed something. ``listen``: where its fleet watch was, host:port.
    ``began_ms``: when the cluster began, in Unix milliseconds.
    ``makes_room``: as in ``Goal``. ``back``: why it is on its way back to ``spec_json``; empty if it is not.
    """

    spec_json: str
    previous_json: str = ""
    epoch: int = 0
    listen: str = ""
    began_ms: int = 0
    makes_room: bool = False
    back: str = ""


class Ground(Protocol):
    """What makes machines for the cluster, where something does, and knows more of them than what runs actors there."""

    @property
    def room(self) -> Room: ...

    def look(self) -> None:
        """What is wanted may be other than it was. Must not block."""

    def seen(self, topology: Topology) -> Topology:
        """The same hosts, with what is known of them here."""

    def could_be(self, topology: Topology) -> Topology:
        """What is seen, and hosts that would be made for replicas that need them."""


class AsItIs:
    """A ``Ground`` where machines come and go by themselves."""

    room = AS_IT_IS

    def look(self) -> None:
        """Nothing is made of it."""

    def seen(self, topology: Topology) -> Topology:
        """As it is."""
        return topology

    could_be = seen


class ActorLost(SegueError):  # noqa: N818 - a condition, as in core.errors
    """The actor's process is gone, or never came to be."""

    code, http_status, grpc_code = "actor_lost", 503, "UNAVAILABLE"


class ActorPort(Protocol):
    """A running actor, as the controller of one term has it.

    Every method raises ActorLost once its process is gone, and all but ``wait_closed`` StaleEpoch once it has heard the
    controller of a higher term; callers bound the waits.
    """

    async def start(self) -> None:
        """Returns when it serves. Raises WorkerStartFailed, or whatever SegueError tells why it can't.

        It comes up once, whoever asked first: asked again, it says the same.
        """

    async def snapshot(self) -> ActorSnapshot:
        """Its own account of itself, also during a start."""

    async def drain(self, seconds: float) -> None:
        """Takes nothing new; returns when all that was running has finished, or the seconds are over."""

    async def stop(self) -> None:
        """Ends what it runs; ``wait_closed`` returns then."""

    async def wait_closed(self) -> None:
        """Returns after a stop; raises ActorLost as soon as the process is gone."""


class ClusterPort(Protocol):
    """Reservations and actors of one cluster, each known by ``actor_name``."""

    async def reserve(self, order: Order, tell: Callable[[str], None]) -> None:
        """Waits until the order's resources are set aside, on its hosts if it names some, however long; ``tell`` hears
        why they are not yet."""

    async def create(self, order: Order) -> ActorPort:
        """An actor in the order's reservation. It may still be coming up: its methods wait for it."""

    async def attach(self, name: str) -> ActorPort | None:
        """The actor of that name, whoever made it; None where there is none, or only its reservation."""

    async def remove(self, name: str) -> None:
        """Ends the actor and gives its reservation back; nothing of that name is left on return. Repeatable."""

    async def names(self) -> frozenset[str]:
        """Every actor and reservation of this cluster that exists now."""

    async def topology(self) -> Topology:
        """The machines that there are now, and where this cluster's reservations are: of a slot the newest."""

    async def claim(self) -> int:
        """The next term of this cluster, for one caller only; the terms before it are stale from then on.

        Whoever claimed one has StaleEpoch from reserve, create and remove once it is stale.
        """

    async def remember(self, memory: Memory, term: int) -> None:
        """Keeps it in place of what was remembered before. Raises StaleEpoch where the term is stale.

        The term has to be the one that was claimed here.
        """

    async def recall(self) -> Memory | None:
        """What was last remembered; None where the cluster is new, or was taken down."""

    async def forget(self) -> None:
        """Leaves nothing to remember, and every term stale. Repeatable."""


def actor_name(cluster: str, slot_id: str, epoch: int) -> str:
    """One name for one filling of a slot, for all time; the epoch keeps a replacement apart from what it replaces."""
    return f"{cluster}/{slot_id}@{epoch}"


def name_of(order: Order) -> str:
    """The name of the actor that the order is for."""
    slot_id = order.worker_id if isinstance(order, WorkerAssignment) else order.gateway_id
    return actor_name(order.cluster, slot_id, order.epoch)


def belongs(name: str, cluster: str) -> bool:
    """Whether ``name`` is one that ``actor_name`` makes for this cluster."""
    owner, _, rest = name.rpartition("/")
    return owner == cluster and "@" in rest


def slot_and_epoch(name: str) -> tuple[str, int]:
    """What ``actor_name`` made the name of."""
    slot_id, _, epoch = name.rpartition("/")[2].rpartition("@")
    return slot_id, int(epoch)
