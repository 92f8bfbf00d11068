"""The seam: to vLLM's front end, a whole cluster is one engine core.

This file and ``frontend`` are the only ones on this side that know vLLM's engine interface, which is internal to vLLM;
the contract tests in ``tests/gateway`` fail loudly when it moves.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Protocol, cast

from vllm.config.kv_events import KVEventsConfig
from vllm.exceptions import GenerationError, GracefulHTTPError, VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from orchestrator.core.errors import ProtocolError, SegueError
from orchestrator.gateway.context import CURRENT
from orchestrator.gateway.unfit import guard
from orchestrator.telemetry import logs

__all__ = [
    "ClusterCore",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "EngineCoreRequest",
    "FinishReason",
    "RequestSink",
    "adapter",
    "decode_outputs",
    "encode_request",
    "for_decode",
    "for_prefill",
    "needs_local_prefill",
    "output_limit",
    "prompt_origin",
    "prompt_tokens",
    "refuse_internal_names",
    "replacing_engine_core",
]

log = logs.events("gateway.seam")

_encoder = MsgpackEncoder()
_decoder = MsgpackDecoder(EngineCoreOutputs)
_INTERNAL_NAMES = ("kv_transfer_params", "ec_transfer_params")
_TO_BE_COLLECTED = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class RequestSink(Protocol):
    """Where the seam's requests go: the driver."""

    def submit(self, core: ClusterCore, request: EngineCoreRequest) -> None: ...

    def cancel(self, request_id: str, *, complete: bool) -> None: ...


class _Resources:
    engine_dead = False  # a cluster does not die as one; requests fail one by one


class ClusterCore(EngineCoreClient):
    """One model's engine core, as ``AsyncLLM`` sees it."""

    engine_ranks_managed = (0,)
    resources = _Resources()

    def __init__(self, model: str, sink: RequestSink, isolate_caches: bool = False) -> None:
        self.model = model
        self._isolate_caches = isolate_caches
        self.llm: AsyncLLM | None = None  # set once the front end is built around this core
        self.tasks: tuple[str, ...] = ()  # known once a worker is
        self._sink = sink
        self._steps: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        if request.abort_immediately:
            return  # vLLM frees what a request that it refused was to collect; here that is never a client's business
        if self.llm is not None and not self.llm.output_processor.has_request(request.request_id):
            return  # a sibling that was sent just before failed at once, and this one with it
        request.data_parallel_rank = None
        context = CURRENT.get()
        if context is not None and context.priority is not None:
            request.priority = context.priority
        if self._isolate_caches:
            # No name has a line break in it, so no tenant can choose a salt that makes another's.
            request.cache_salt = f"{context.tenant if context else ''}\n{request.cache_salt or ''}"
        self._sink.submit(self, request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        assert self.llm is not None  # noqa: S101
        # The output handler aborts what it ended itself (a stop string); anyone else has given up on the request.
        complete = asyncio.current_task() is self.llm.output_handler
        for request_id in request_ids:
            self._sink.cancel(request_id, complete=complete)

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._steps.get()

    def push(self, outputs: list[EngineCoreOutput]) -> None:
        """Hands one step's outputs (under the front end's own request ids) to the front end."""
        self._steps.put_nowait(EngineCoreOutputs(outputs=outputs))

    def fail(self, request_id: str, error: SegueError) -> None:
        """Ends a request in the front end with a typed error; its siblings (``n`` > 1) end with it."""
        assert self.llm is not None  # noqa: S101
        processor = self.llm.output_processor
        state = processor.request_states.get(request_id)
        if state is None or state.queue is None:
            return
        queue, parent = state.queue, state.parent_req
        aborted = processor.abort_requests([parent.request_id if parent else request_id], internal=True)
        queue.put(_as_vllm_error(error))
        for sibling in aborted:
            self._sink.cancel(sibling, complete=False)

    def attach(self, llm: AsyncLLM) -> None:
        """Belongs to this front end from here on."""
        self.llm = llm
        guard(llm.output_processor, self._unfit)

    def _unfit(self, request_id: str, error: Exception) -> None:
        log.warning("output_unfit", error, request=request_id)
        self._sink.cancel(request_id, complete=False)
        self.fail(request_id, ProtocolError("a worker's output could not be read", where=self.model))

    async def get_supported_tasks_async(self) -> tuple[Any, ...]:
        return self.tasks

    async def reset_mm_cache_async(self) -> None:
        return None

    async def is_sleeping_async(self) -> bool:
        return False

    def get_kv_event_sources(self) -> dict[int, KVEventsConfig]:
        return {}

    def dp_engines_running(self) -> bool:
        return False

    def shutdown(self, timeout: float | None = None) -> None:
        return None


@contextmanager
def replacing_engine_core(core: ClusterCore) -> Iterator[None]:
    """Within it, an ``AsyncLLM`` that is being built gets ``core`` instead of starting an engine of its own."""
    original = EngineCoreClient.__dict__["make_async_mp_client"]
    EngineCoreClient.make_async_mp_client = staticmethod(lambda **_: core)  # type: ignore[method-assign]
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = original  # type: ignore[method-assign]


class _RequestFailedError(GracefulHTTPError, GenerationError):
    """By its first base the front end hands it on as it is, by its second without a stack trace in the log."""

    def __init__(self, error: SegueError, status: HTTPStatus) -> None:
        super().__init__(str(error), status)
        self.status_code = status
        self.__cause__ = error


def _as_vllm_error(error: SegueError) -> Exception:
    if error.http_status == HTTPStatus.BAD_REQUEST:
        return VLLMValidationError(str(error))
    known = {status.value for status in HTTPStatus}
    status = error.http_status if error.http_status in known else HTTPStatus.INTERNAL_SERVER_ERROR
    return _RequestFailedError(error, HTTPStatus(status))


def refuse_internal_names(params: SamplingParams | PoolingParams) -> None:
    """Workers dial the addresses in a request's transfer parameters: they are the cluster's to choose.

    Raises:
        VLLMValidationError: a client tried to.
    """
    extra = (params.extra_args if isinstance(params, SamplingParams) else params.extra_kwargs) or {}
    for name in extra:
        if name in _INTERNAL_NAMES or name.startswith("segue_"):
            raise VLLMValidationError(f"{name} is set by the cluster", parameter=name)


def prompt_tokens(request: EngineCoreRequest) -> int:
    """Length of the prompt in tokens."""
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    return int(request.prompt_embeds.shape[0]) if request.prompt_embeds is not None else 0


def adapter(request: EngineCoreRequest) -> str:
    """The adapter that the request runs with; "" for none."""
    return request.lora_request.lora_name if request.lora_request is not None else ""


def output_limit(request: EngineCoreRequest) -> int:
    """The most tokens that the request may get; 0 where it gets none, or names no limit."""
    params = request.sampling_params
    return (params.max_tokens or 0) if params is not None else 0


def needs_local_prefill(request: EngineCoreRequest) -> bool:
    """Whether something about the prompt is only known to the engine that computes it."""
    params = request.sampling_params
    if params is None or request.prompt_embeds is not None:
        return True
    return params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None


def for_prefill(request: EngineCoreRequest, wire_id: str) -> EngineCoreRequest:
    """The request's first half: the whole prompt, one token that nobody will see, and KV left to be collected."""
    params = cast(SamplingParams, request.sampling_params).clone()
    params.max_tokens, params.min_tokens, params.ignore_eos = 1, 0, True
    # Whatever shapes that one token is work for nothing.
    params.logprobs, params.structured_outputs, params.logit_bias = None, None, None
    return _variant(request, wire_id, params, _TO_BE_COLLECTED)


def for_decode(request: EngineCoreRequest, wire_id: str, transfer: Mapping[str, Any] | None) -> EngineCoreRequest:
    """The request's second half, which collects the KV that ``transfer`` names (None: computes the prompt itself)."""
    params = request.sampling_params.clone() if request.sampling_params is not None else None
    return _variant(request, wire_id, params, transfer)


def _variant(
    request: EngineCoreRequest, wire_id: str, params: SamplingParams | None, transfer: Mapping[str, Any] | None
) -> EngineCoreRequest:
    variant = copy.copy(request)
    variant.request_id = wire_id
    if params is not None:
        if transfer is not None:
            params.extra_args = {**(params.extra_args or {}), "kv_transfer_params": dict(transfer)}
        variant.sampling_params = params
    return variant


def encode_request(request: EngineCoreRequest) -> list[bytes]:
    """vLLM's own msgpack; buffers of large tensors follow the first element."""
    return [bytes(cast(bytes, part)) for part in _encoder.encode(request)]


def decode_outputs(parts: Sequence[bytes]) -> list[EngineCoreOutput]:
    """The outputs in a step frame."""
    return cast(EngineCoreOutputs, _decoder.decode(parts)).outputs


def prompt_origin(output: EngineCoreOutput, prefix_cached: int | None) -> tuple[int, int]:
    """Prompt tokens that a prefix cache saved, and those whose KV was moved.

    To the decoding engine what was moved is cached too. The client is told of what nobody had to compute: where prefill
    ran apart, that is what its prefix cache knew (``prefix_cached``).
    """
    stats = output.prefill_stats
    if stats is None:
        return 0, 0
    stats.num_cached_tokens = stats.num_local_cached_tokens if prefix_cached is None else prefix_cached
    return stats.num_cached_tokens, stats.num_external_cached_tokens
