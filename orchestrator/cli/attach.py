"""``segue up`` on a Ray that others started: how long a cluster stays there, and how to find one that does."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from orchestrator.cli import rpc
from orchestrator.cli.ground import RayThatIsThere
from orchestrator.core.errors import ClusterUnreachable, ConfigError, NotReady
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.spec import Bind, ClusterSpec, Endpoint

HERE = "auto"  # the Ray that RAY_ADDRESS names, as in a job of it, or whose node this is
START = "start one with: segue up CONFIG --address RAY"
NODE_LOOK_SECONDS = 1.0
EVERYWHERE = {"127.0.0.1": "0.0.0.0", "localhost": "0.0.0.0", "::1": "::"}  # noqa: S104 - what it is asked for


@dataclass(frozen=True, slots=True)
class Stay:
    """What becomes of a cluster when its ``segue up`` ends. Both False: it goes if it was asked to stop."""

    attached: bool = False  # goes, however the command ends
    keep: bool = False  # stays, once it was ready
    leave: bool = False  # the command ends as soon as it is ready
    nodes: int = 0  # that have to be there before anything is planned

    @property
    def apart(self) -> bool:
        """Whether nothing of the cluster is below the command's own process."""
        return self.attached or self.keep


def stay_of(args: argparse.Namespace) -> Stay:
    """What ``segue up`` was asked for. Raises ConfigError."""
    if args.keep and not (args.attach or args.address):
        what = "a Ray that ends with the command keeps nothing"
        raise ConfigError(what, where="--keep", hint="with --attach or --address RAY")
    if args.attach and args.detach and not args.keep:
        what = "what is attached to a command that returns ends at once"
        raise ConfigError(what, where="--detach", hint="add --keep")
    if (args.bind or args.nodes or args.kubernetes) and not (args.attach or args.keep):
        where = "--bind" if args.bind else "--nodes" if args.nodes else "--kubernetes"
        raise ConfigError("a Ray of its own is on this machine alone", where=where, hint="with --attach or --keep")
    return Stay(args.attach and not args.keep, args.keep, args.keep and args.detach, args.nodes)


def on_the_network(spec: ClusterSpec) -> ClusterSpec:
    """The same cluster for clients and workers on other machines: what it had on loopback is on every interface."""
    gateway = replace(spec.gateway, http=_opened(spec.gateway.http), grpc=_opened(spec.gateway.grpc))
    controller = replace(spec.controller, listen=_opened(spec.controller.listen))
    return replace(spec, bind=Bind.NODE, gateway=gateway, controller=controller)


def _opened(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, host=EVERYWHERE.get(endpoint.host, endpoint.host))


def await_nodes(
    count: int,
    topology: Callable[[], Topology],
    tell: Callable[[str], None],
    seconds: float,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Until so many nodes that can run a worker have joined: a plan for those that came first would crowd them.

    Raises NotReady after ``seconds``.
    """
    for _ in range(max(1, math.ceil(seconds / NODE_LOOK_SECONDS))):
        there = sum(host.cpus > 0 for host in topology().hosts)
        if there >= count:
            return
        tell(f"{there} of {count} have joined")
        pause(NODE_LOOK_SECONDS)
    what = f"{there} of {count} nodes with CPUs have joined within {seconds:g} s (controller.start_timeout)"
    raise NotReady(what, where="--nodes", hint="are the others still coming, or can't they reach this Ray?")


@contextmanager
def joined(address: str) -> Iterator[RayThatIsThere]:
    """A Ray for a question or an order. Raises ClusterUnreachable."""
    ground = RayThatIsThere(address)
    ground.start(None)
    try:
        yield ground
    finally:
        ground.stop()


def of_a_ray(address: str, name: str | None) -> bool:
    """Whether an address is a Ray's where it may be a gateway's, which has no name and is never ``auto``."""
    return bool(name) or address == HERE


def controller_on(address: str, name: str | None) -> str:
    """host:port of the controller of a cluster on that Ray: of that name, or of the only one.

    Raises ClusterUnreachable where there is none, ConfigError where it has to be known which.
    """
    with joined(address) as ground:
        name = name or only_cluster(ground, address)
        found = ground.controller(name)
    if not found:
        raise ClusterUnreachable(f"no cluster named {name!r} runs on this Ray", where=address, hint=START)
    return found


def only_cluster(ground: RayThatIsThere, address: str) -> str:
    """The name of the cluster that has a controller there. Raises as ``controller_on`` does."""
    names = ground.clusters()
    if len(names) > 1:
        raise ConfigError(f"several clusters are up: {', '.join(names)}", hint="choose one with --name")
    if not names:
        raise ClusterUnreachable("no cluster runs on this Ray", where=address, hint=START)
    return names[0]


def gateway_on(address: str, name: str | None) -> tuple[str, str]:
    """host:port of HTTP and gRPC of a gateway that serves a cluster on that Ray. Raises NotReady too."""
    status = rpc.status(controller_on(address, name))
    for gateway in status.gateways:
        if gateway.state == "ready" and not gateway.outside:
            return gateway.http, gateway.grpc
    raise NotReady(f"cluster {status.name} has no gateway of its own that is ready", hint="see segue status")
