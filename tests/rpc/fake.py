"""A gateway whose engine does what the test scripts, and stops the world where the test wants to look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc.aio
import torch
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, PoolingOutput, PoolingRequestOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from orchestrator.core.errors import ModelNotFound, SegueError
from orchestrator.core.types import RequestReport
from orchestrator.gateway import rpc
from orchestrator.gateway.context import CURRENT, RequestContext
from orchestrator.gateway.underway import Underway
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2_grpc
from orchestrator.telemetry.metrics import GatewayMetrics

PROMPT = [1, 2, 3, 4, 5]


class Freeze:
    """A point of the script at which the engine waits."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.thaw = asyncio.Event()


Step = RequestOutput | Exception | Freeze | RequestReport


def step(
    text: str = "",
    ids: Sequence[int] = (),
    finish: str | None = None,
    *,
    index: int = 0,
    stop: str | int | None = None,
    logprobs: Any = None,
    last: bool | None = None,
    **over: Any,
) -> RequestOutput:
    """One engine step of one sequence; ``last`` if the whole request ends with it."""
    output = CompletionOutput(index, text, list(ids), None, logprobs, finish_reason=finish, stop_reason=stop)
    done = finish is not None if last is None else last
    fields = {"prompt_token_ids": PROMPT, "prompt_logprobs": None, "num_cached_tokens": 2, **over}
    return RequestOutput("internal", None, outputs=[output], finished=done, **fields)


def logprob(value: float, rank: int | None, token: str | None) -> Logprob:
    return Logprob(value, rank, token)


def report(**over: Any) -> RequestReport:
    fields = {
        "prefill_worker": "p0",
        "decode_worker": "d0",
        "cached_tokens": 1,
        "transferred_tokens": 4,
        "kv_bytes": 1024,
        "queue_seconds": 0.001,
        "prefill_seconds": 0.25,
        "transfer_seconds": 0.125,
        "ttft_seconds": 0.5,
    }
    return RequestReport("internal", "m", "finished", **{**fields, **over})


@dataclass
class Call:
    """What the engine was asked."""

    engine_input: Any
    params: Any
    request_id: str
    options: dict[str, Any]
    context: RequestContext | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    completed: bool = False


class FakeLLM:
    """Plays ``script`` to each request. A request that is given up on ends without ``completed``."""

    def __init__(self) -> None:
        self.script: Iterable[Step] = [step("hi", [7], "stop")]
        self.vectors: Callable[[str], Any] = lambda text: torch.tensor([float(len(text)), 0.5])
        self.calls: list[Call] = []
        self.arrived = asyncio.Event()
        self.model_config = SimpleNamespace()
        self.renderer = self

    async def generate(
        self, engine_input: Any, params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncIterator[RequestOutput]:
        call = Call(engine_input, params, request_id, options, CURRENT.get())
        self.calls.append(call)
        self.arrived.set()
        try:
            for each in self.script:
                if isinstance(each, Exception):
                    raise each
                if isinstance(each, RequestReport):
                    assert call.context is not None
                    call.context.reports.append(each)
                elif isinstance(each, Freeze):
                    each.reached.set()
                    await each.thaw.wait()
                else:
                    yield each
            call.completed = True
        finally:
            call.ended.set()

    async def encode(self, engine_input: Any, params: Any, request_id: str) -> AsyncIterator[PoolingRequestOutput]:
        self.calls.append(Call(engine_input, params, request_id, {}, CURRENT.get()))
        vector = self.vectors(engine_input["prompt"])
        if isinstance(vector, Exception):
            raise vector
        ids = engine_input["prompt_token_ids"]
        yield PoolingRequestOutput(request_id, PoolingOutput(vector), ids, num_cached_tokens=0, finished=True)


class FakeRenderer:
    """Renders everything to the same tokens and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.enable_auto_tools = True
        self.use_harmony = False
        self.fails: Exception | None = None

    async def render_completion(self, request: Any) -> Any:
        return self._rendered(request)

    async def render_chat(self, request: Any) -> Any:
        return [], self._rendered(request)

    def _rendered(self, request: Any) -> list[Any]:
        if self.fails is not None:
            raise self.fails
        self.asked.append(request)
        return [{"prompt_token_ids": PROMPT}]


class FakeFront:
    def __init__(self, name: str = "m") -> None:
        self.name = name
        self.disaggregated = True
        self.tasks: tuple[str, ...] = ("generate",)
        self.max_model_len = 100
        self.llm = FakeLLM()
        self.renderer = FakeRenderer()
        self.is_ready = True
        serving = SimpleNamespace(default_sampling_params={}, override_max_tokens=None, parser_cls=None)
        self.state = SimpleNamespace(
            online_renderer=self.renderer,
            openai_serving_completion=serving,
            openai_serving_chat=serving,
            openai_serving_models=SimpleNamespace(lora_requests={"poet": "the poet adapter"}),
        )

    def ready(self) -> bool:
        return self.is_ready


class FakeGateway:
    """See ``ports.GatewayView``."""

    def __init__(self) -> None:
        self.the_front = FakeFront()
        self.current = cluster_pb2.ClusterStatus(name="test", ready=True)
        self.draining = False
        self.underway = Underway()
        self.metrics = GatewayMetrics("gw-0")
        self.looks = 0
        self.refusal: SegueError | None = None  # of whoever knocks
        self._change = asyncio.Event()

    def front(self, model: str) -> FakeFront:
        if model in ("", self.the_front.name):
            return self.the_front
        raise ModelNotFound(f"no model '{model}' is served here", hint="models here: m")

    def knock(self, model: str, context: RequestContext) -> None:
        if self.refusal is not None:
            raise self.refusal

    def fronts(self) -> list[FakeFront]:
        return [self.the_front]

    def status(self) -> cluster_pb2.ClusterStatus:
        self.looks += 1
        copy = cluster_pb2.ClusterStatus()
        copy.CopyFrom(self.current)
        return copy

    def change(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self.current, name, value)
        waiting, self._change = self._change, asyncio.Event()
        waiting.set()

    async def status_changed(self, timeout_seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._change.wait(), timeout_seconds)
        except TimeoutError:
            return False
        return True


@dataclass
class Edge:
    """The gRPC side, and a client of it."""

    gateway: FakeGateway
    address: str
    channel: grpc.aio.Channel

    @property
    def llm(self) -> FakeLLM:
        return self.gateway.the_front.llm

    @property
    def inference(self) -> inference_pb2_grpc.InferenceStub:
        return inference_pb2_grpc.InferenceStub(self.channel)

    @property
    def cluster(self) -> cluster_pb2_grpc.ClusterStub:
        return cluster_pb2_grpc.ClusterStub(self.channel)


@asynccontextmanager
async def serving(max_body_bytes: int = 1 << 20) -> AsyncIterator[Edge]:
    gateway = FakeGateway()
    server = grpc.aio.server(options=rpc.server_options(max_body_bytes))
    rpc.add_services(server, gateway)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Edge(gateway, address, channel)
    await server.stop(0)
