"""KubeRay's objects as what is decided on, and what was decided as a patch: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from orchestrator.controller.kube.ports import Object, Operation
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.rollout import PoolKey
from orchestrator.core.spec import Role
from orchestrator.core.worker_groups import Group, Pod, Scaling

MODEL, ROLE = "segue.io/model", "segue.io/role"  # an annotation and a label of a group's pods
CLUSTER, NODE_TYPE, GROUP = "ray.io/cluster", "ray.io/node-type", "ray.io/group"  # labels that KubeRay gives to pods
REPLICA = "ray.io/worker-group-replica-name"
_UNBOUNDED = 2**31 - 1
_MOST_TO_COME = 64  # of a group; who has no bound of its own needs no more to be seen
_ROLES = frozenset(role.value for role in Role)


def workers_of(cluster: str) -> str:
    """The selector of a RayCluster's worker pods."""
    return f"{CLUSTER}={cluster},{NODE_TYPE}=worker"


def is_autoscaled(ray_cluster: Object) -> bool:
    """Whether KubeRay's autoscaler owns its counts."""
    return bool(ray_cluster["spec"].get("enableInTreeAutoscaling"))


def groups_of(ray_cluster: Object) -> tuple[Group, ...]:
    """The worker groups that say which pool's they are, and are not suspended."""
    return tuple(
        Group(
            name=spec["groupName"],
            pool=pool,
            replicas=spec.get("replicas") or 0,
            least=spec.get("minReplicas") or 0,
            most=spec.get("maxReplicas", _UNBOUNDED),
            hosts=spec.get("numOfHosts") or 1,
            to_delete=tuple((spec.get("scaleStrategy") or {}).get("workersToDelete") or ()),
        )
        for spec in _specs(ray_cluster)
        if (pool := _pool(spec)) is not None and not spec.get("suspend")
    )


def pods_of(pods: Iterable[Object], joined: Mapping[str, str], busy: Set[str]) -> tuple[Pod, ...]:
    """``joined``: by address the ids of Ray's nodes that are alive; ``busy``: the ids on which something is.

    A pod whose raylet says that it is well has joined, whether Ray's list of nodes has it or not.
    """
    return tuple(
        Pod(
            name=pod["metadata"]["name"],
            group=pod["metadata"].get("labels", {}).get(GROUP, ""),
            joined=address_of(pod) in joined or _is_ready(pod),
            busy=joined.get(address_of(pod), "") in busy,
            leaving="deletionTimestamp" in pod["metadata"],
            stuck=_stuck(pod),
            replica=pod["metadata"].get("labels", {}).get(REPLICA, ""),
        )
        for pod in pods
    )


def address_of(pod: Object) -> str:
    """Empty as long as it has none."""
    return str(pod.get("status", {}).get("podIP") or "")


def hosts_to_come(ray_cluster: Object, pods: Iterable[Object], topology: Topology) -> tuple[Host, ...]:
    """Those that groups may still have: like one of the group that joined, or else as Ray is started there."""
    if is_autoscaled(ray_cluster):
        return ()
    by_address = {host.address: host for host in topology.hosts if host.address}
    joined: dict[str, list[Host]] = {}
    for pod in pods:
        host = by_address.get(address_of(pod))
        if host is not None and "deletionTimestamp" not in pod["metadata"]:
            joined.setdefault(pod["metadata"].get("labels", {}).get(GROUP, ""), []).append(host)
    specs = {spec["groupName"]: spec for spec in _specs(ray_cluster)}
    found: list[Host] = []
    for group in groups_of(ray_cluster):
        there = joined.get(group.name, [])
        like = max(there, key=lambda host: host.gpus) if there else _as_started(specs[group.name])
        for number in range(min(group.most * group.hosts - len(there), _MOST_TO_COME)):
            name = f"{group.name}+{number + 1}"
            found.append(replace(like, host_id=name, name=name, address=""))
    return tuple(found)


def _as_started(spec: Mapping[str, Any]) -> Host:
    told = spec.get("rayStartParams") or {}
    gpus, cpus = (int(float(told.get(name) or 0)) for name in ("num-gpus", "num-cpus"))
    return Host("", "", gpus, cpus=cpus, labels=spec.get("labels") or {}, here=False)


def patch_of(ray_cluster: Object, scalings: Sequence[Scaling]) -> list[Operation]:
    """Only for the RayCluster as it was read."""
    at = {spec["groupName"]: (index, spec) for index, spec in enumerate(_specs(ray_cluster))}
    operations: list[Operation] = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": ray_cluster["metadata"]["resourceVersion"]}
    ]
    for scaling in scalings:
        index, spec = at[scaling.group.name]
        path = f"/spec/workerGroupSpecs/{index}"
        operations.append({"op": "add", "path": f"{path}/replicas", "value": scaling.replicas})
        if scaling.to_delete:
            told = {"workersToDelete": list(scaling.to_delete)}
            operations.append({"op": "add", "path": f"{path}/scaleStrategy", "value": told})
        elif "scaleStrategy" in spec:
            operations.append({"op": "remove", "path": f"{path}/scaleStrategy"})
    return operations


def _specs(ray_cluster: Object) -> list[Mapping[str, Any]]:
    return list(ray_cluster["spec"].get("workerGroupSpecs") or ())


def _pool(spec: Mapping[str, Any]) -> PoolKey | None:
    meta = spec["template"].get("metadata") or {}
    model, role = (meta.get("annotations") or {}).get(MODEL), (meta.get("labels") or {}).get(ROLE)
    return (model, Role(role)) if model and role in _ROLES else None


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def _stuck(pod: Object) -> str:
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "it is not scheduled")
    return ""
