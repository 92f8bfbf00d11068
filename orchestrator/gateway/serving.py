"""A gateway and its two edges: ports, servers, and how they end."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import grpc.aio
import uvicorn

from orchestrator.core.errors import SegueError
from orchestrator.core.spec import ClusterSpec, Endpoint
from orchestrator.core.types import GatewayAssignment
from orchestrator.gateway.turn import Turn
from orchestrator.telemetry import foreign

KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
LOCK_NAME = "gateway.turn"  # beside the logs, which all processes of a cluster have in common
ANSWER_SECONDS = 2.0  # to write the ends of answers, and for their clients to take them
# A listener is not the only one that can have it: `segue up` looked for those half a minute before.
TAKEN_HINT = "see who has it with `ss -tanp`; outgoing connections have those of net.ipv4.ip_local_port_range"


class Serving:
    """A gateway and its two edges. ``turn`` says when to listen, where other processes have the same ports."""

    def __init__(self, assignment: GatewayAssignment, spec: ClusterSpec) -> None:
        from orchestrator.gateway.gateway import Gateway  # imports vLLM
        from orchestrator.gateway.rpc import reads_requests, server_options

        self._spec = spec
        self.drain_timeout = spec.controller.drain_timeout
        self.gateway = Gateway(assignment.gateway_id, spec, record=assignment.record, epoch=assignment.epoch)
        several = spec.gateway.processes > 1 and assignment.log_dir
        self.turn = Turn(self.gateway, Path(assignment.log_dir) / LOCK_NAME if several else None)
        self._grpc = grpc.aio.server(
            options=server_options(spec.gateway.max_body_bytes), interceptors=[reads_requests()]
        )
        self._listens = False
        self._sockets: list[socket.socket] = []
        self._http: uvicorn.Server | None = None
        self._http_task: asyncio.Task[None] | None = None

    def bind(self) -> tuple[str, str]:
        """Takes both ports, for others like it to share; returns their addresses (HTTP, gRPC)."""
        spec = self._spec.gateway
        for endpoint in (spec.http, spec.grpc):
            self._sockets.append(_bound(endpoint))
        http, rpc = (sock.getsockname()[1] for sock in self._sockets)
        return str(Endpoint(spec.http.host, http)), str(Endpoint(spec.grpc.host, rpc))

    async def listen(self) -> None:
        """Opens both ports that it has."""
        from orchestrator.gateway.http import HttpEdge
        from orchestrator.gateway.http_protocol import BoundedHttp, bound_unread
        from orchestrator.gateway.rpc import add_services

        foreign.hush()
        add_services(self._grpc, self.gateway)
        spec = self._spec.gateway
        http, rpc = self._sockets
        # gRPC takes no socket; it gets one of its own on the port, which this one kept for it.
        self._grpc.add_insecure_port(str(Endpoint(spec.grpc.host, rpc.getsockname()[1])))
        await self._grpc.start()
        self._listens = True
        rpc.close()
        bound_unread(http)
        http.listen(BACKLOG)
        config = uvicorn.Config(
            HttpEdge(self.gateway, spec.max_body_bytes),
            http=BoundedHttp,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            server_header=False,
        )
        self._http = uvicorn.Server(config)
        self._http_task = asyncio.create_task(self._http.serve(sockets=[http]))

    async def close(self) -> None:
        """Ends what is still open, and lets go of all but gRPC's port: there it goes on to refuse."""
        try:
            self.gateway.cut_off()
            await asyncio.gather(self.gateway.underway.over(ANSWER_SECONDS), self._close_http())
        finally:
            for sock in self._sockets:
                sock.close()
            self.turn.close()
            await self.gateway.close()

    async def refuse(self, seconds: float) -> None:
        """Refuses who still calls by gRPC, for so long or until the process ends, and then stops that too.

        Its own stop answers calls that come as it begins with CANCELLED, which no client takes for a reason to ask
        again: it is for those whom nobody calls any more.
        """
        if self._listens:
            await asyncio.sleep(seconds)
        await self._grpc.stop(None)

    async def _close_http(self) -> None:
        if self._http is None or self._http_task is None:
            return
        self._http.should_exit = True
        await asyncio.wait([self._http_task], timeout=ANSWER_SECONDS)
        self._http.force_exit = True
        await asyncio.wait([self._http_task], timeout=ANSWER_SECONDS)


def _bound(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((endpoint.host, endpoint.port))
    except OSError as error:
        sock.close()
        hint = TAKEN_HINT if error.errno == errno.EADDRINUSE else ""
        raise SegueError(f"can't have its port: {error.strerror}", where=str(endpoint), hint=hint) from error
    sock.setblocking(False)
    return sock
