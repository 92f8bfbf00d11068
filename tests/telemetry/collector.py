"""A collector that keeps what it is sent, and can be told to stop answering."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.resources: list[trace_pb2.ResourceSpans] = []
        self.asked = threading.Event()
        self.answering = threading.Event()
        self.answering.set()
        self.endpoint = ""

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.asked.set()
        self.answering.wait(30)
        self.resources.extend(request.resource_spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, trace_pb2.Span]:
        return {span.name: span for each in self.resources for scope in each.scope_spans for span in scope.spans}


@contextmanager
def running() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        collector.answering.set()
        server.stop(0).wait(5)
