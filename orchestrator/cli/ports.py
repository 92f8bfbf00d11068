"""Whether a port is free, and if not, who has it."""

from __future__ import annotations

import socket

import psutil

from orchestrator.cli import run_folder
from orchestrator.core.errors import SegueError
from orchestrator.core.spec import ClusterSpec, Endpoint

_ACTORS = ("ray::ControllerActor", "ray::GatewayProcess", "ray::WorkerActor")
_DOWN = "stop its cluster with: segue down --name NAME --address ADDRESS (of its Ray)"


class PortTaken(SegueError):  # noqa: N818  # named as its relatives in core.errors
    """Something else listens where the cluster should."""

    code = "port_taken"


def listeners(spec: ClusterSpec) -> dict[str, Endpoint]:
    """The cluster's fixed ports, by the configuration key that names them."""
    gateways = {"gateway.http": spec.gateway.http, "gateway.grpc": spec.gateway.grpc}
    named = {**(gateways if spec.gateway.processes else {}), "controller.listen": spec.controller.listen}
    return {key: endpoint for key, endpoint in named.items() if endpoint.port}


def require_free(spec: ClusterSpec) -> None:
    """Raises PortTaken naming the holder."""
    for key, endpoint in listeners(spec).items():
        if not is_free(endpoint):
            who, remedy = holder(endpoint)
            hint = f"{remedy}, or give {key} another port in the configuration"
            raise PortTaken(f"{endpoint} is taken by {who}", where=key, hint=hint)


def is_free(endpoint: Endpoint) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections of an earlier run that linger in TIME_WAIT don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
            probe.listen(1)
        except OSError:
            return False
    return True


def holder(endpoint: Endpoint) -> tuple[str, str]:
    """Who listens there, and what frees it, as far as the system tells."""
    for folder in run_folder.running():
        record = folder.read()
        if record and str(endpoint) in (record.http, record.grpc, record.controller):
            return f"cluster {record.name}", f"segue down --name {record.name}"
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        connections = []
    for one in connections:
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == endpoint.port and one.pid:
            what = _describe(one.pid)
            ours = what.startswith(_ACTORS)  # of a cluster whose owner is gone, or has another SEGUE_HOME
            return f"process {one.pid} ({what})", _DOWN if ours else f"kill {one.pid}"
    return "a process of another user", "have it stopped"


def _describe(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[:80].strip() or psutil.Process(pid).name()
    except psutil.Error:
        return "gone meanwhile"
