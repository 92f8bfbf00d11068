"""A cluster's controller in Ray: started, found and ended. Unlike the actors that it keeps, Ray restarts it."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError
from ray.util import list_named_actors

from orchestrator.controller import ray_memory
from orchestrator.controller.ray_cluster import NAMESPACE, RayCluster, detached, find, here, names, ours, remove
from orchestrator.core.errors import ClusterUnreachable, NameTaken
from orchestrator.core.spec import ClusterSpec
from orchestrator.telemetry import logs

log = logs.events("controller.ray")

_START = 60.0  # seconds for the controller to listen
_ANSWER = 10.0  # seconds for a running controller to answer
_SHUTDOWN_MARGIN = 60.0  # seconds over the drain for stopping and removing
_LEAST = 0.02  # seconds for an answer, however late it is asked for
_AWAY = 0.5  # seconds between two looks for a controller that is restarting


def start_controller(
    spec: ClusterSpec, log_dir: str, cluster: RayCluster | None = None, *, kubernetes: str = ""
) -> str:
    """Starts the cluster's detached controller on this node; Ray must be initialised.

    ``kubernetes``: the RayCluster that this Ray is, where it is one.

    Returns host:port of the fleet watch, as soon as it listens: the cluster comes up behind it.
    Raises NameTaken if a cluster of that name is there already, ConfigError if ``controller.listen`` can't be had,
    NotReady where another controller acts for that RayCluster.
    """
    from orchestrator.controller.service import ControllerActor

    require_name(spec.name)
    name = _controller_name(spec.name)
    # Its constructor, which Ray runs again, has it take over what its predecessor left.
    options = {"num_cpus": 0, "scheduling_strategy": here(), "max_restarts": -1}
    actor = detached(ControllerActor, name, options)
    node_host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    try:
        handle = actor.remote(spec, log_dir, cluster or RayCluster(spec.name), node_host, _residence(kubernetes))
    except ValueError:  # Ray's word for a name that another caller took in between
        raise _taken(spec.name) from None
    try:
        return str(ray.get(handle.start.remote(), timeout=_START))
    except (RayError, GetTimeoutError) as error:
        _clear(spec.name)
        raise ours(error, "controller") from None


def _residence(kubernetes: str) -> Any:
    """Nothing of Kubernetes is imported where there is none."""
    if not kubernetes:
        return None
    from orchestrator.controller.kube.resident import resident_in

    return partial(resident_in, kubernetes)


def require_name(name: str) -> None:
    """Raises NameTaken if there is a cluster of that name, or something that one has left."""
    if find(_controller_name(name)) is not None or names(name):
        raise _taken(name)


def _taken(name: str) -> NameTaken:
    hint = (
        f"'segue down --name {name}' stops it, with --address if it was started elsewhere or its owner is gone; "
        "or choose another name"
    )
    return NameTaken(f"a cluster named {name!r} runs on this Ray already", where="cluster.name", hint=hint)


def clusters() -> list[str]:
    """The names of the clusters that have a controller here, in order."""
    prefix = _controller_name("")
    rows = list_named_actors(all_namespaces=True)
    found = [row["name"] for row in rows if row["namespace"] == NAMESPACE and row["name"].startswith(prefix)]
    return sorted(name.removeprefix(prefix) for name in found)


def controller_address(name: str) -> str:
    """host:port of the fleet watch of the cluster of that name; empty where there is no such cluster.

    Raises ClusterUnreachable if its controller does not answer.
    """
    handle = find(_controller_name(name))
    if handle is None:
        return ""
    try:
        return str(ray.get(handle.address.remote(), timeout=_ANSWER))
    except (RayError, GetTimeoutError) as error:
        raise ClusterUnreachable("its controller does not answer", where=f"cluster {name}") from error


def stop_controller(name: str, drain_seconds: float) -> None:
    """Drains and ends gateways, then workers, gives back placement groups, and ends the controller.

    Works without a live controller too: then what is left is ended without draining.
    Raises ClusterUnreachable if there is nothing of that name.
    """
    handle = find(_controller_name(name))
    if handle is None and not names(name):
        raise ClusterUnreachable(f"no cluster named {name!r} runs here", hint="'segue up CONFIG' starts one")
    if handle is not None:
        try:
            _shut_down(handle, drain_seconds)
        except (RayError, GetTimeoutError) as error:
            log.warning("shutdown_failed", error=ours(error, name), cluster=name)
    _clear(name)


def _clear(name: str) -> None:
    """Ends what there still is of a cluster, by force, and forgets it."""
    remove(_controller_name(name))  # first, or Ray could restart it and it would fill what is emptied here
    # What a controller that died or hung left behind; of gateways first, as they need the workers.
    for rest in sorted(names(name), key=lambda rest: "/gateway-" not in rest):
        remove(rest)
    ray_memory.forget(name)


def _shut_down(handle: ActorHandle[Any], drain_seconds: float) -> None:
    """Asks again if the controller is lost meanwhile: the one that takes over sees the rest off."""
    deadline = time.monotonic() + drain_seconds + _SHUTDOWN_MARGIN
    while True:
        left = max(deadline - time.monotonic(), _LEAST)
        try:
            ray.get(handle.shutdown.remote(min(drain_seconds, left)), timeout=left)
            return
        except ActorUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_AWAY)


def _controller_name(cluster: str) -> str:
    return f"segue-controller-{cluster}"
