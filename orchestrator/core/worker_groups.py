"""How many pods each worker group of a RayCluster is to have, and which of them may go.

KubeRay makes pods until a group has ``replicas`` x ``hosts`` of them, and ends those that it is told by name. Where
there are more than that besides, it ends some of its own choice. So a count is lowered by as many as are named and no
more, and a name stays until its pod has long been gone: KubeRay goes by lists that lag behind. What goes is empty, and
gets nothing more (``closed``); where a replica of the pool waits for its place or is about to leave, nothing goes yet.

A pool's replicas are on its own group's pods, one a replica of the group, or ``together`` where they are shares. Counts
are this controller's: whatever somebody else made of them becomes what is wanted again, from ``least`` to ``most``,
which are theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from orchestrator.core.rollout import PoolKey, pool_of
from orchestrator.core.slots import Kind, ObservedActor, Slot
from orchestrator.core.spec import ClusterSpec, Device
from orchestrator.core.types import WorkerState


@dataclass(frozen=True, slots=True)
class Group:
    """A worker group. Counts are of its replicas, which have ``hosts`` pods each; ``to_delete`` are names of pods."""

    name: str
    pool: PoolKey
    replicas: int
    least: int
    most: int
    hosts: int = 1
    to_delete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a group that is not gone.

    ``joined``: it is a node of Ray's. ``busy``: a replica holds something on it. ``leaving``: it was told to end.
    ``stuck``: why Kubernetes has no node for it. ``replica``: the name that pods have in common which KubeRay makes and
    ends together; empty where it says none.
    """

    name: str
    group: str
    joined: bool = False
    busy: bool = False
    leaving: bool = False
    stuck: str = ""
    replica: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Replicas by pool, spares of an upgrade included, and how many of them share a pod.

    ``moving``: pools of which one waits for its place, or is leaving.
    """

    replicas: Mapping[PoolKey, int]
    together: Mapping[PoolKey, int]
    moving: frozenset[PoolKey] = frozenset()

    def of(self, group: Group) -> int:
        """The group's replicas that it takes."""
        together = self.together.get(group.pool, 1)
        return max(group.least, -(-self.replicas.get(group.pool, 0) // together))


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a group is to be told now.

    ``closing``: pods that are to get nothing more, so that they may go at the next look. ``coming``: pods are on their
    way. ``lacks``: why there are not as many as are wanted, and won't be.
    """

    group: Group
    replicas: int
    to_delete: tuple[str, ...]
    closing: frozenset[str] = frozenset()
    coming: bool = False
    lacks: str = ""

    @property
    def changes(self) -> bool:
        return (self.replicas, self.to_delete) != (self.group.replicas, self.group.to_delete)


def wanted_of(spec: ClusterSpec, slots: Iterable[Slot], actors: Sequence[ObservedActor]) -> Wanted:
    """From the slots that are to be filled now, and what is there."""
    slots = [slot for slot in slots if slot.kind is Kind.WORKER]
    settled = {actor.slot.slot_id for actor in actors if not actor.leaving and actor.state is not WorkerState.PENDING}
    moving = {pool_of(slot) for slot in slots if slot.slot_id not in settled}
    moving |= {pool_of(actor.slot) for actor in actors if actor.leaving or actor.state is WorkerState.PENDING}
    pools = {(model.name, role): pool for model in spec.models for role, pool in model.pools.items()}
    return Wanted(
        Counter(pool_of(slot) for slot in slots),
        {key: int(1.0001 / pool.share) for key, pool in pools.items() if pool.device is Device.GPU},
        frozenset(moving),
    )


def scaled(
    groups: Sequence[Group], pods: Iterable[Pod], wanted: Wanted, *, closed: Set[str], gone: Set[str]
) -> tuple[Scaling, ...]:
    """Every group's, in their order.

    ``closed``: pods on which nothing is, nor will be. ``gone``: names of pods that have not been there for long.
    """
    by_group: dict[str, list[Pod]] = {}
    for pod in pods:
        by_group.setdefault(pod.group, []).append(pod)
    times = Counter(group.pool for group in groups)
    found = []
    for group in groups:
        if times[group.pool] > 1:
            lacks = f"{times[group.pool]} worker groups are for {' '.join(filter(None, group.pool))}: all left alone"
            found.append(Scaling(group, group.replicas, group.to_delete, lacks=lacks))
        else:
            found.append(_scaled(group, by_group.get(group.name, []), wanted, closed, gone))
    return tuple(found)


def _scaled(group: Group, pods: Sequence[Pod], wanted: Wanted, closed: Set[str], gone: Set[str]) -> Scaling:
    there = {pod.name: pod for pod in pods}
    named = [name for name in group.to_delete if _stays_named(name, there, gone)]
    held = frozenset(named)
    rest = [pod for pod in pods if pod.name not in held]
    need = wanted.of(group)
    # With fewer KubeRay would choose which pods go.
    replicas = min(max(need, group.replicas, -(-len(rest) // group.hosts)), group.most)
    surplus = replicas - need
    closing: list[Pod] = []
    if surplus > 0 and group.pool not in wanted.moving:
        for together in _empty(group, rest)[:surplus]:
            if all(pod.name in closed or not pod.joined for pod in together):
                named += [pod.name for pod in together]
                replicas -= 1
            closing += together
    return Scaling(
        group,
        replicas,
        tuple(named),
        frozenset(pod.name for pod in closing),
        len(rest) < replicas * group.hosts or any(not (pod.joined or pod.stuck or pod.leaving) for pod in rest),
        _lacks(group, need, rest),
    )


def _stays_named(name: str, there: Mapping[str, Pod], gone: Set[str]) -> bool:
    """One that serves is not to be ended, whoever said so; one that is ending can't be had back."""
    pod = there.get(name)
    return name not in gone if pod is None else pod.leaving or not pod.busy


def _empty(group: Group, pods: Sequence[Pod]) -> list[tuple[Pod, ...]]:
    """The pods of each replica of the group on which nothing is, those first that are the least loss."""
    if group.hosts > 1 and all(pod.replica for pod in pods):
        by_replica: dict[str, list[Pod]] = {}
        for pod in pods:
            by_replica.setdefault(pod.replica, []).append(pod)
        sets = [tuple(each) for each in by_replica.values() if not any(pod.busy for pod in each)]
        return sorted((each for each in sets if len(each) == group.hosts), key=lambda each: max(map(_loss, each)))
    empty = sorted((pod for pod in pods if not pod.busy), key=_loss)
    last = len(empty) - group.hosts
    return [tuple(empty[first : first + group.hosts]) for first in range(0, last + 1, group.hosts)]


def _loss(pod: Pod) -> tuple[bool, bool, bool, str]:
    return not pod.leaving, pod.joined, not pod.stuck, pod.name


def _lacks(group: Group, need: int, pods: Iterable[Pod]) -> str:
    if need > group.most:
        return f"worker group {group.name} would need {need} replicas, and its maxReplicas is {group.most}"
    return next((f"pod {pod.name} has no node: {pod.stuck}" for pod in pods if pod.stuck and not pod.leaving), "")
