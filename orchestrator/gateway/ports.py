"""What the two edges (HTTP and gRPC) see of a gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from orchestrator.gateway.context import RequestContext
from orchestrator.gateway.underway import Underway
from orchestrator.proto import cluster_pb2
from orchestrator.record.stories import Found
from orchestrator.telemetry.metrics import GatewayMetrics


class ModelFront(Protocol):
    """One model's front end: vLLM's ``AsyncLLM`` over the cluster, and the API application built on it."""

    @property
    def name(self) -> str: ...

    @property
    def disaggregated(self) -> bool: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def llm(self) -> Any:
        """The ``vllm.v1.engine.async_llm.AsyncLLM``."""
        ...

    @property
    def state(self) -> Any:
        """What vLLM's ``init_app_state`` filled: online_renderer, openai_serving_models ..."""
        ...

    def ready(self) -> bool:
        """Whether a worker that decodes takes requests; a prefill pool that is lost only costs time."""
        ...


class GatewayView(Protocol):
    """The whole gateway, for an edge."""

    draining: bool  # takes nothing new, finishes what it has

    @property
    def underway(self) -> Underway:
        """Requests from when they are let in until their answer is written; edges enter it."""
        ...

    @property
    def metrics(self) -> GatewayMetrics: ...

    def front(self, model: str) -> ModelFront:
        """The model of that name, or the only one for "".

        Raises:
            ModelNotFound: no such model.
            InvalidRequest: "" where several are served.
            NotReady: known, but its front end is not up yet.
        """
        ...

    def knock(self, model: str, context: RequestContext) -> None:
        """Before the work of reading a request begins; the context says who asks, and until when.

        Raises:
            Overloaded, ClusterFull: it would be turned away, whatever it asks for.
        """
        ...

    def fronts(self) -> Sequence[ModelFront]:
        """All front ends that are up."""
        ...

    def status(self) -> cluster_pb2.ClusterStatus:
        """The fleet as last watched, with loads from the newest step frames."""
        ...

    def explain(self, request_id: str) -> Found:
        """What happened to a request that this gateway had, by any of its ids or the beginning of one."""
        ...

    async def status_changed(self, timeout_seconds: float) -> bool:
        """Waits until ``status`` may differ from before; False after the time-out."""
        ...
