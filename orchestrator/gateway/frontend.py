"""One model's front end: vLLM's ``AsyncLLM`` and API application, built around a ``ClusterCore``.

With ``cluster_core`` the only place on this side that knows how vLLM's server is put together.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.anthropic import api_router as anthropic_router
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from orchestrator.config import effective_engine_args
from orchestrator.core.spec import Backend, ModelSpec, PoolSpec, Role
from orchestrator.gateway.body_checks import one_fault_a_list
from orchestrator.gateway.cluster_core import ClusterCore, RequestSink, refuse_internal_names, replacing_engine_core
from orchestrator.gateway.context import CURRENT

# What only concerns the engine that computes: the front end needs no device, no shards and no KV cache.
_ENGINE_ONLY = frozenset(
    {
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "kv_cache_memory_bytes",
        "gpu_memory_utilization",
        "num_gpu_blocks_override",
        "enable_expert_parallel",
        "load_format",
        "worker_cls",
    }
)
_MOCK_KEYS_OF_VLLM = frozenset({"block_size", "max_model_len", "max_num_seqs"})


class _FrontEnd(AsyncLLM):
    """Refuses what only the cluster may say before a request is on vLLM's books, where a refusal would leave it."""

    async def add_request(
        self, request_id: str, prompt: Any, params: SamplingParams | PoolingParams, *args: Any, **kwargs: Any
    ) -> Any:
        refuse_internal_names(params)
        try:
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        except VLLMClientError:
            raise
        except (ValueError, TypeError) as error:  # of its checks; not all of them say that the client is meant
            raise VLLMValidationError(str(error)) from error


class Front:
    """See ``ports.ModelFront``. Made in two steps: ``build`` (slow), then ``open`` once a worker is known."""

    def __init__(self, spec: ModelSpec, llm: AsyncLLM, core: ClusterCore, ready: Callable[[], bool]) -> None:
        self.name = spec.name
        self.source = spec.source
        self.disaggregated = spec.disaggregated
        self.llm = llm
        self.core = core
        self.tasks: tuple[str, ...] = ()
        self.app: FastAPI | None = None
        self.state: Any = None
        self.paths: frozenset[str] = frozenset()
        self._ready = ready
        self._longest = int(llm.model_config.max_model_len)  # by its configuration
        self._frontend = spec.frontend

    @property
    def max_model_len(self) -> int:
        return int(self.llm.model_config.max_model_len)

    @property
    def busy(self) -> bool:
        """Whether a request is on its books."""
        return bool(self.llm.output_processor.has_unfinished_requests())

    def fits(self, tasks: tuple[str, ...], max_model_len: int) -> bool:
        """Whether it is open for these tasks, and refuses just what engines of this context can't hold."""
        return self.tasks == tasks and self.max_model_len == min(self._longest, max_model_len)

    def ready(self) -> bool:
        return self.app is not None and self._ready()

    async def open(self, tasks: tuple[str, ...], max_model_len: int) -> None:
        """Builds the API application, for what the model's workers can do."""
        self.tasks = self.core.tasks = tasks
        # An engine may have fitted its context to its memory: the front end must refuse what that can't hold.
        self.llm.model_config.max_model_len = min(self._longest, max_model_len)
        args = _server_args(self.name, self.llm, self._frontend)
        app = build_app(args, tasks, self.llm.model_config)  # type: ignore[arg-type]
        for route in app.routes:
            if isinstance(route, APIRoute) and route.dependant.call is not None:
                route.dependant.call = _noted(route.dependant.call)
        # vLLM's handlers of engine errors want to stop the server that they run in: this one is not theirs to stop.
        app.state.server = SimpleNamespace(should_exit=False)
        await init_app_state(self.llm, app.state, args, tasks)  # type: ignore[arg-type]
        if (responses := getattr(app.state, "openai_serving_responses", None)) is not None:
            reader = responses.online_renderer
            reader.render_responses = _read_or_refused(reader.render_responses)
        for name in ("openai_serving_completion", "openai_serving_chat"):
            if (serving := getattr(app.state, name, None)) is not None:
                serving.beam_search = _of_something(serving.beam_search)
        one_fault_a_list(app)
        self.paths = frozenset(path for route in app.routes if (path := getattr(route, "path", "")))
        self.state, self.app = app.state, app

    def close(self) -> None:
        self.llm.shutdown()


def build(
    spec: ModelSpec, path: str, sink: RequestSink, ready: Callable[[], bool], *, isolate_caches: bool = False
) -> Front:
    """Loads the model's configuration, tokenizer and renderer from ``path`` (a folder or a Hugging Face id).

    Must run on the event loop's thread: ``AsyncLLM`` starts its output task there.
    """
    core = ClusterCore(spec.name, sink, isolate_caches)
    args = AsyncEngineArgs(
        model=path, served_model_name=[spec.name], disable_log_stats=True, **_front_engine_args(spec)
    )
    config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    with replacing_engine_core(core):
        llm = _FrontEnd.from_vllm_config(config, usage_context=UsageContext.OPENAI_API_SERVER, disable_log_stats=True)
    core.attach(llm)
    return Front(spec, llm, core, ready)


def made_of(spec: ModelSpec) -> Mapping[str, Any]:
    """Equal for models whose front ends are alike."""
    parts = {"source": spec.source, "frontend": spec.frontend, "disaggregated": spec.disaggregated}
    return {**parts, "engine": _front_engine_args(spec)}


def _front_engine_args(spec: ModelSpec) -> dict[str, Any]:
    pool: PoolSpec = spec.pools[Role.DECODE if spec.disaggregated else Role.SERVE]
    args = effective_engine_args(spec, pool)
    if pool.backend is Backend.MOCK:
        return {key: value for key, value in args.items() if key in _MOCK_KEYS_OF_VLLM}
    return {key: value for key, value in args.items() if key not in _ENGINE_ONLY}


def _server_args(name: str, llm: AsyncLLM, frontend: Mapping[str, Any]) -> argparse.Namespace:
    """vLLM's API-server options: its own defaults, the model's ``frontend`` over them, and what Segue decides."""
    parser = make_arg_parser(FlexibleArgumentParser())  # type: ignore[no-untyped-call]
    args: argparse.Namespace = parser.parse_args([])
    config = llm.vllm_config
    fixed = {
        "model": config.model_config.model,
        "served_model_name": [name],
        "structured_outputs_config": config.structured_outputs_config,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "disable_fastapi_docs": True,
        "api_key": None,
        "enable_scale_out": False,
    }
    for key, value in {"enable_prompt_tokens_details": True, **frontend, **fixed}.items():
        setattr(args, key, value)
    return args


def _noted(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The same endpoint; it is known of a request that it has come there."""

    @functools.wraps(endpoint)
    def noted(*args: Any, **kwargs: Any) -> Any:
        if (context := CURRENT.get()) is not None:
            context.taken = True
        return endpoint(*args, **kwargs)

    return noted


def _is_refusal(error: BaseException | None) -> bool:
    """Whether vLLM answers it as the client's mistake."""
    return isinstance(error, Exception) and create_error_response(error).error.code < HTTPStatus.INTERNAL_SERVER_ERROR


def _no_refusals(record: logging.LogRecord) -> bool:
    """For vLLM's Anthropic routes, which log whatever they answer as an error: clients could fill the log."""
    return not (record.exc_info and _is_refusal(record.exc_info[1]))


logging.getLogger(anthropic_router.__name__).addFilter(_no_refusals)


def _read_or_refused(render: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same reader of conversations; over what it trips is wrong with the conversation."""

    @functools.wraps(render)
    async def rendered(*args: Any, **kwargs: Any) -> Any:
        try:
            return await render(*args, **kwargs)
        except (AssertionError, AttributeError, LookupError, TypeError) as error:
            what = f"the input has something in a place where it can't be ({type(error).__name__})"
            raise VLLMValidationError(what, parameter="input") from error

    return rendered


def _of_something(search: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., AsyncGenerator[Any, None]]:
    """The same beam search, for prompts that have a token: it takes the last one for granted."""

    @functools.wraps(search)
    async def searched(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        if not prompt.get("decoder_prompt", prompt).get("prompt_token_ids", True):
            raise VLLMValidationError("the prompt has no token", parameter="prompt")
        async with aclosing(search(prompt, *args, **kwargs)) as outputs:
            async for output in outputs:
                yield output

    return searched
