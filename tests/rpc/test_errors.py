"""Whatever goes wrong reaches a client as a code it can act on, and nothing of ours leaks."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import grpc
import pytest
from jinja2 import TemplateError
from vllm.exceptions import GracefulHTTPError, QueueOverflowError, VLLMNotFoundError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from orchestrator.core import errors
from orchestrator.core.errors import Overloaded, SegueError, WorkerLost
from orchestrator.gateway import rpc_errors
from orchestrator.proto import inference_pb2 as pb
from orchestrator.telemetry import logs
from tests.rpc.client import details
from tests.rpc.fake import Edge, serving, step

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = pb.GenerateRequest(text="Dear diary, today", request_id="mine")


async def failure(edge: Edge, request: pb.GenerateRequest = TEXT) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async for _ in edge.inference.Generate(request, timeout=10):
            pass
    return failed.value


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    root, own = logging.getLogger(), logging.getLogger("segue")
    before = root.level, own.level, list(root.handlers)
    stream = io.StringIO()
    logs.setup("info", stream)
    yield stream
    root.setLevel(before[0])
    own.setLevel(before[1])
    root.handlers[:] = before[2]


async def test_who_would_be_turned_away_is_told_before_the_prompt_is_read(edge: Edge) -> None:
    edge.gateway.refusal = Overloaded("too many wait", retry_after=3.0)
    error = await failure(edge)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(error)["RetryInfo"].retry_delay.seconds == 3
    assert not edge.gateway.the_front.renderer.asked


async def test_an_unknown_model_is_not_found_and_says_which_there_are(edge: Edge) -> None:
    error = await failure(edge, pb.GenerateRequest(model="nope", text="x"))
    info: Any = details(error)["ErrorInfo"]

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "model_not_found",
        "segue",
        {"hint": "models here: m"},
    )


@pytest.mark.parametrize(
    "raised",
    [
        Overloaded("the queue is full", where="m", hint="slow down", retry_after=1.5),
        caused(
            GracefulHTTPError("the queue is full", HTTPStatus.TOO_MANY_REQUESTS),
            Overloaded("the queue is full", where="m", hint="slow down", retry_after=1.5),
        ),
        caused(EngineGenerateError(), Overloaded("the queue is full", where="m", hint="slow down", retry_after=1.5)),
    ],
    ids=["plain", "as vLLM carries it", "as vLLM wraps it"],
)
async def test_a_refusal_says_when_to_come_back(edge: Edge, raised: Exception) -> None:
    edge.llm.script = [raised]
    error = await failure(edge)
    found: Any = details(error)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "m: the queue is full (slow down)"
    assert found["ErrorInfo"].reason == "overloaded"
    assert dict(found["ErrorInfo"].metadata) == {"where": "m", "hint": "slow down"}
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize(
    ("raised", "code", "reason"),
    [
        (VLLMValidationError("too long"), "INVALID_ARGUMENT", "invalid_request"),
        (VLLMNotFoundError("no such adapter"), "NOT_FOUND", "model_not_found"),
        (QueueOverflowError(), "UNAVAILABLE", "not_ready"),
        (GracefulHTTPError("gone", HTTPStatus.GATEWAY_TIMEOUT), "DEADLINE_EXCEEDED", "deadline_exceeded"),
        (GracefulHTTPError("odd", HTTPStatus.CONFLICT), "INTERNAL", "internal"),
        (EngineDeadError(), "UNAVAILABLE", "worker_lost"),
        (WorkerLost("died"), "UNAVAILABLE", "worker_lost"),
    ],
)
async def test_vllms_own_errors_have_their_codes(edge: Edge, raised: Exception, code: str, reason: str) -> None:
    edge.llm.script = [raised]
    error = await failure(edge)
    info: Any = details(error)["ErrorInfo"]
    assert (error.code().name, info.reason) == (code, reason)


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"temperature": 3.0}, "sampling.temperature"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"presence_penalty": -2.5}, "sampling.presence_penalty"),
        ({"min_p": 1.5}, "sampling.min_p"),
        ({"n": 0}, "sampling.n"),
        ({"n": 2, "temperature": 0}, "sampling.n"),
        ({"max_tokens": 0}, "sampling.max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "sampling.min_tokens"),
        ({"stop": [""]}, "sampling.stop"),
        ({"bad_words": [""]}, "sampling.bad_words"),
        ({"stop": ["x"], "detokenize": False}, "sampling.stop"),
        ({"stream_interval": 0}, "sampling.stream_interval"),
        ({"logprobs": -2}, "sampling.logprobs"),
        ({"structured": pb.StructuredOutput()}, "sampling.structured"),
        ({"structured": pb.StructuredOutput(json_object=False)}, "sampling.structured"),
        ({"repetition_detection": pb.RepetitionDetection(max_pattern_size=3)}, "min_count"),
        ({"thinking_token_budget": -2}, "sampling.thinking_token_budget"),
        ({"temperature": math.nan}, "sampling.temperature"),
        ({"repetition_penalty": math.inf}, "sampling.repetition_penalty"),
        ({"frequency_penalty": math.nan}, "sampling.frequency_penalty"),
        ({"top_p": math.nan}, "sampling.top_p"),
    ],
    ids=str,
)
async def test_a_field_at_fault_is_named(edge: Edge, sampling: dict[str, Any], field: str) -> None:
    error = await failure(edge, pb.GenerateRequest(text="x", sampling=pb.SamplingParams(**sampling)))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field.rpartition(".")[2] in (error.details() or "")
    if "." in field:
        bad: Any = details(error)["BadRequest"]
        assert [violation.field for violation in bad.field_violations] == [field]
    assert edge.llm.calls == []


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params", "segue_sent_token_ids"])
async def test_a_client_cannot_set_what_is_the_clusters(edge: Edge, name: str) -> None:
    request = pb.GenerateRequest(text="x")
    request.sampling.extra_args.update({name: {"remote_host": "10.0.0.1"}})
    error = await failure(edge, request)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"sampling.extra_args.{name}" in (error.details() or "")
    assert edge.llm.calls == []


@pytest.mark.parametrize("request_id", ["two words", "x" * 129, "tab\there"])
async def test_an_id_that_would_spoil_the_logs_is_refused(edge: Edge, request_id: str) -> None:
    error = await failure(edge, pb.GenerateRequest(text="x", request_id=request_id))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_adapter_is_not_found(edge: Edge) -> None:
    error = await failure(edge, pb.GenerateRequest(text="x", adapter="none"))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_model_that_does_not_generate_says_so(edge: Edge) -> None:
    edge.gateway.the_front.tasks = ("embed",)
    error = await failure(edge)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "embed" in (error.details() or "")


@pytest.mark.parametrize(
    "raised",
    [ValueError("Input length (900) exceeds the context"), TemplateError("roles must alternate"), TypeError("no")],
)
async def test_a_prompt_that_cannot_be_rendered_is_the_callers_fault(edge: Edge, raised: Exception) -> None:
    edge.gateway.the_front.renderer.fails = raised
    error = await failure(edge)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(raised) in (error.details() or "")


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        ('{"type": "function"}', "tools.0.function"),
        ("{", "chat.tools[0]"),
        ("[]", "chat.tools[0]"),
        ("[" * 100_000, "chat.tools[0]"),
    ],
    ids=["incomplete", "no JSON", "no object", "deep"],
)
async def test_a_malformed_tool_is_named(edge: Edge, tool: str, field: str) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="1+1?")], tools=[tool])
    error = await failure(edge, pb.GenerateRequest(chat=chat))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad: Any = details(error)["BadRequest"]
    assert [violation.field for violation in bad.field_violations] == [field]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_defect_of_ours_is_internal_logged_and_kept_to_ourselves(
    edge: Edge, logged: io.StringIO, wrapped: bool
) -> None:
    defect = KeyError("Dear diary, today")
    edge.llm.script = [caused(EngineGenerateError(), defect) if wrapped else defect]
    error = await failure(edge)

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "diary" not in repr(error)
    (line,) = logged.getvalue().splitlines()
    assert 'error gateway.rpc rpc_failed request_id=mine error="KeyError"' in line
    assert "diary" not in line


async def test_a_sequence_that_fails_ends_the_call_and_keeps_what_was_sent(edge: Edge) -> None:
    edge.llm.script = [step("so far", [1, 2]), step("", [], "error")]
    call = edge.inference.Generate(TEXT, timeout=10)
    assert (await call.read()).sequences[0].text == "so far"
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    found: Any = details(failed.value)
    assert found["ErrorInfo"].reason == "worker_lost"
    assert "RetryInfo" in found


async def test_a_message_over_the_limit_is_refused_by_the_server() -> None:
    async with serving(max_body_bytes=10_000) as edge:
        error = await failure(edge, pb.GenerateRequest(text="x" * 20_000))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert edge.llm.calls == []


@pytest.mark.parametrize("kind", [SegueError, *SegueError.__subclasses__()], ids=lambda kind: kind.__name__)
async def test_every_error_of_the_tree_has_a_status(kind: type[SegueError]) -> None:
    if kind.__module__ == errors.__name__:
        status = rpc_errors.as_status(kind("what", where="here", hint="do", retry_after=1))
        assert status.code == getattr(grpc.StatusCode, kind.grpc_code).value[0]
        assert len(status.details) == 2
