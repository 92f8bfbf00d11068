"""A cluster's gRPC side that says what a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from orchestrator.proto import cluster_pb2 as cpb
from orchestrator.proto import cluster_pb2_grpc, inference_pb2_grpc
from orchestrator.proto import inference_pb2 as ipb

WAIT_SECONDS = 20.0


class FakeCluster(cluster_pb2_grpc.ClusterServicer, inference_pb2_grpc.InferenceServicer):
    """Controller and gateway in one. ``address`` is where it answers."""

    def __init__(self) -> None:
        self.address = ""
        self.models = [ipb.Model(name="tiny", tasks=["generate"], ready=True)]
        self.words = ["The capital", " is", " Paris."]
        self.refusal: tuple[str, str] | None = None  # reason and detail of an error that Generate answers with
        self.asked: list[ipb.GenerateRequest] = []
        self.hold = threading.Event()  # set: Generate goes on after its first word
        self.hold.set()
        self.cancelled = threading.Event()
        self.explain: Callable[[str], cpb.ExplainResponse] = lambda _: cpb.ExplainResponse(gateway="gateway-0")
        self._changed = threading.Condition()
        self._status = cpb.ClusterStatus()
        self._version = 0
        self.stop: Callable[[], None] = lambda: None

    def tell(self, status: cpb.ClusterStatus) -> None:
        """Changes what Status answers, and sends it to all who watch."""
        with self._changed:
            self._status = status
            self._version += 1
            self._changed.notify_all()

    def Status(self, request: Any, context: Any) -> cpb.ClusterStatus:  # noqa: N802
        return self._status

    def Explain(self, request: Any, context: Any) -> cpb.ExplainResponse:  # noqa: N802
        return self.explain(request.request_id)

    def Watch(self, request: Any, context: Any) -> Iterator[cpb.ClusterStatus]:  # noqa: N802
        seen = -1
        while context.is_active():
            with self._changed:
                if not self._changed.wait_for(lambda seen=seen: self._version != seen, timeout=0.2):
                    continue
                seen, status = self._version, self._status
            yield status

    def ListModels(self, request: Any, context: Any) -> ipb.ListModelsResponse:  # noqa: N802
        return ipb.ListModelsResponse(models=self.models)

    def Generate(self, request: ipb.GenerateRequest, context: Any) -> Iterator[ipb.GenerateResponse]:  # noqa: N802
        self.asked.append(request)
        context.add_callback(self.cancelled.set)
        if self.refusal:
            context.abort_with_status(_refusal(*self.refusal))
        for number, word in enumerate(self.words):
            if number == 1:
                self.hold.wait(WAIT_SECONDS)
            yield ipb.GenerateResponse(sequences=[ipb.SequenceDelta(text=word, token_ids=[number])])
        yield ipb.GenerateResponse(
            usage=ipb.Usage(prompt_tokens=38, completion_tokens=len(self.words), transferred_tokens=38),
            placement=ipb.Placement(
                prefill_worker="tiny-prefill-0", decode_worker="tiny-decode-0", kv_bytes=1_474_560, ttft_seconds=0.112
            ),
        )


def _refusal(reason: str, detail: str) -> Any:
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="segue"))
    return rpc_status.to_status(status_pb2.Status(code=code_pb2.UNAVAILABLE, message=detail, details=[info]))


@contextmanager
def serving(cluster: FakeCluster, address: str = "127.0.0.1:0") -> Iterator[FakeCluster]:
    """At an address of its own, or at one that it shares with others (SO_REUSEPORT), as gateway processes do."""
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    cluster_pb2_grpc.add_ClusterServicer_to_server(cluster, server)
    inference_pb2_grpc.add_InferenceServicer_to_server(cluster, server)
    cluster.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    cluster.stop = lambda: server.stop(grace=None).wait(WAIT_SECONDS) and None
    server.start()
    try:
        yield cluster
    finally:
        cluster.hold.set()
        cluster.stop()


def worker(role: str, state: str = "ready", **fields: Any) -> cpb.WorkerStatus:
    ready = {"kv_blocks_total": 512, "actor_pid": 11, "engine_pid": 12, "node": "127.0.0.1"} if state == "ready" else {}
    return cpb.WorkerStatus(id=f"tiny-{role}-0", state=state, **(ready | fields))


def status(
    *workers: cpb.WorkerStatus, ready: bool = True, gateway: str = "ready", grpc_address: str = "127.0.0.1:1"
) -> cpb.ClusterStatus:
    """One model, ``tiny``, with a pool a worker."""
    workers = workers or (worker("prefill"), worker("decode"))
    pools = [cpb.PoolStatus(role=one.id.split("-")[1], replicas=1, workers=[one]) for one in workers]
    return cpb.ClusterStatus(
        ready=ready,
        name="test",
        models=[cpb.ModelStatus(name="tiny", source="tiny:", pools=pools)],
        gateways=[cpb.GatewayStatus(id="gateway-0", http="127.0.0.1:8000", grpc=grpc_address, pid=13, state=gateway)],
        controller=cpb.ControllerStatus(pid=14, epoch=3, address="127.0.0.1:9100"),
    )
