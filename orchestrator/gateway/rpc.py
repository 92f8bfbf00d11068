"""The gRPC side of a gateway: services, health, reflection and the server's limits, put together."""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from orchestrator.core.errors import InvalidRequest
from orchestrator.gateway.ports import GatewayView
from orchestrator.gateway.rpc_cluster import ClusterService, HealthService
from orchestrator.gateway.rpc_errors import Context, as_status
from orchestrator.gateway.rpc_inference import InferenceService
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc
from orchestrator.proto.reading import ReadsRequests

_SEND_LIMIT = 256 << 20  # all log-probabilities of a long prompt are large, and asked for
_MIN_PING_MILLIS = 10_000


def server_options(max_body_bytes: int) -> list[tuple[str, int]]:
    """Options for ``grpc.aio.server``: limits, keep-alive, and a port that several processes can share."""
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", max_body_bytes),
        ("grpc.max_send_message_length", _SEND_LIMIT),
        # Clients may ping idle connections through proxies; the server notices clients that are gone without a word.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_MILLIS),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


def reads_requests() -> ReadsRequests:
    """An interceptor for ``grpc.aio.server``: what can't be read is answered as any other bad request."""
    status = rpc_status.to_status(as_status(InvalidRequest("the message is not what the method takes")))

    async def refuse(context: Context) -> None:
        await context.abort(status.code, status.details or "", status.trailing_metadata or ())

    return ReadsRequests(refuse)


def add_services(server: grpc.aio.Server, gateway: GatewayView) -> None:
    """Adds Inference, Cluster, Health and Reflection to a server that has not started."""
    inference_pb2_grpc.add_InferenceServicer_to_server(InferenceService(gateway), server)
    cluster_pb2_grpc.add_ClusterServicer_to_server(ClusterService(gateway), server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(gateway), server)
    names = [
        inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
        cluster_pb2.DESCRIPTOR.services_by_name["Cluster"].full_name,
        health.SERVICE_NAME,
        reflection.SERVICE_NAME,
    ]
    reflection.enable_server_reflection(names, server)
