"""segue.v1.Inference over a gateway's front ends."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

from opentelemetry.trace import Span, SpanKind, get_current_span

from orchestrator.core.errors import DeadlineExceeded, ModelNotFound, SegueError
from orchestrator.core.tenancy import NAMES, is_name
from orchestrator.core.types import RequestReport
from orchestrator.gateway import caller
from orchestrator.gateway.context import CURRENT, RequestContext
from orchestrator.gateway.ports import GatewayView, ModelFront
from orchestrator.gateway.rpc_delta import Deltas
from orchestrator.gateway.rpc_embed import embed
from orchestrator.gateway.rpc_errors import BadField, Context, answered, reading_request
from orchestrator.gateway.rpc_prompt import render
from orchestrator.gateway.rpc_sampling import sampling_params
from orchestrator.gateway.rpc_write import write
from orchestrator.proto import inference_pb2 as pb
from orchestrator.proto import inference_pb2_grpc
from orchestrator.telemetry import tracing

_ID = re.compile(r"\S{1,128}")
_REPORT_LOOKS = 20
_REPORT_SECONDS = 0.005


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """The typed API. Handlers write to the call themselves, so that a cancelled call ends in their own code."""

    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        """Streams one request's deltas, then its totals."""
        request_id = request.request_id or _new_id()
        async with _call(self._gateway, context, "Generate", request.model, request_id) as current:
            _caller(current, context, request, request.session)
            if not _ID.fullmatch(request_id):
                raise BadField("up to 128 characters without white space", where="request_id")
            front = self._gateway.front(request.model)
            self._gateway.knock(front.name, current)
            deltas = Deltas(request_id)
            first = True
            async with aclosing(await self._start(front, request, request_id)) as outputs:
                async for output in outputs:
                    if (message := deltas.message(output)) is not None:
                        await write(context, message, first)
                        first = False
            await write(context, deltas.totals(await _reports(current, request)), first)
            tracing.note(get_current_span(), outcome="finished", output_tokens=deltas.output_tokens)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:  # noqa: N802
        """One vector a text."""
        request_id = _new_id()
        async with _call(self._gateway, context, "Embed", request.model, request_id) as current:
            _caller(current, context, request)
            front = self._gateway.front(request.model)
            self._gateway.knock(front.name, current)
            return await embed(front, request, request_id)
        raise AssertionError("answered aborts the call")  # for the type checker

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        """The models whose front ends are up."""
        return pb.ListModelsResponse(models=[_model(front) for front in self._gateway.fronts()])

    @staticmethod
    async def _start(front: ModelFront, request: pb.GenerateRequest, request_id: str) -> Any:
        """The engine's stream of a request, which nothing has been asked of yet."""
        with reading_request():
            rendered = await render(front, request)
            params = sampling_params(request.sampling, rendered.defaults)
        return front.llm.generate(
            rendered.engine_input,
            params,
            request_id,
            lora_request=_adapter(front, request.adapter),
            priority=request.priority,
            **rendered.engine_options,
        )


@asynccontextmanager
async def _call(
    gateway: GatewayView, context: Context, method: str, model: str, request_id: str
) -> AsyncIterator[RequestContext]:
    """A call's surroundings: span, errors, deadline, and the context that the seam looks at."""
    span = tracing.start(
        "segue.request", _headers(context), SpanKind.SERVER, model=model, request_id=request_id, method=method
    )
    with gateway.underway, _current(context, span, request_id) as current:

        def failed(error: SegueError) -> None:
            if not current.reports:  # what reached the cluster is counted by its outcome
                gateway.metrics.refused("grpc", error.code)

        async with answered(context, span, request_id, failed), _deadline(context.time_remaining()):
            yield current


def _caller(
    current: RequestContext, context: Context, request: pb.GenerateRequest | pb.EmbedRequest, session: str = ""
) -> None:
    for name, value in (("tenant", request.tenant), ("session", session)):
        if value and not is_name(value):
            raise BadField(f"allowed: {NAMES}", where=name)
    caller.fill(current, _headers(context), request.tenant, session)


async def _reports(current: RequestContext, request: pb.GenerateRequest) -> Sequence[RequestReport]:
    """The seam's reports. Of a sequence that a stop string ended they may come a moment after its last token."""
    expected = request.sampling.n if request.sampling.HasField("n") else 1
    for _ in range(_REPORT_LOOKS):
        if len(current.reports) >= expected:
            break
        await asyncio.sleep(_REPORT_SECONDS)
    return current.reports


@asynccontextmanager
async def _deadline(seconds: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise DeadlineExceeded("the call's deadline passed before it was done") from error


@contextmanager
def _current(context: Context, span: Span, request_id: str) -> Iterator[RequestContext]:
    remaining = context.time_remaining()
    current = RequestContext(
        request_id,
        trace=tracing.inject(span),
        deadline=None if remaining is None else time.monotonic() + remaining,
    )
    token = CURRENT.set(current)
    try:
        yield current
    finally:
        CURRENT.reset(token)


def _headers(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _new_id() -> str:
    return f"rpc-{uuid.uuid4().hex}"


def _adapter(front: ModelFront, name: str) -> Any:
    if not name:
        return None
    adapter = front.state.openai_serving_models.lora_requests.get(name)
    if adapter is None:
        raise ModelNotFound(f"no adapter {name!r} is loaded", where=front.name)
    return adapter


def _model(front: ModelFront) -> pb.Model:
    return pb.Model(
        name=front.name,
        tasks=front.tasks,
        max_model_len=front.max_model_len,
        disaggregated=front.disaggregated,
        ready=front.ready(),
    )
