"""Errors as gRPC statuses: a code, one sentence, and google.rpc details that programs can read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf import any_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from jinja2 import TemplateError
from opentelemetry.trace import Span
from pydantic import ValidationError
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMNotFoundError
from vllm.v1.engine.exceptions import EngineDeadError

from orchestrator.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    SegueError,
    WorkerLost,
)
from orchestrator.proto import inference_pb2 as pb
from orchestrator.telemetry import logs, tracing

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DOMAIN = "segue"
STATUS_SECONDS = 2.0
_FIELDS = frozenset(pb.SamplingParams.DESCRIPTOR.fields_by_name)
_BY_HTTP: dict[int, type[SegueError]] = {
    HTTPStatus.BAD_REQUEST: InvalidRequest,
    HTTPStatus.NOT_FOUND: ModelNotFound,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidRequest,
    HTTPStatus.TOO_MANY_REQUESTS: Overloaded,
    HTTPStatus.SERVICE_UNAVAILABLE: NotReady,
    HTTPStatus.GATEWAY_TIMEOUT: DeadlineExceeded,
    499: Cancelled,
}

log = logs.events("gateway.rpc")


class BadField(InvalidRequest):
    """The request is wrong in one field; ``where`` is its path in the request message."""


@asynccontextmanager
async def answered(
    context: Context, span: Span, request_id: str = "", failed: Callable[[SegueError], None] = lambda _: None
) -> AsyncIterator[None]:
    """Runs a call under its span and turns what goes wrong into its status. Cancellation passes, for grpc to see."""
    failure: SegueError | None = None
    with tracing.active(span):
        try:
            yield
        except asyncio.CancelledError:
            tracing.note(span, outcome="cancelled")
            raise
        except Exception as raised:
            failure = as_segue_error(raised)
            failed(failure)
            tracing.fail(span, failure)
            if failure.code == SegueError.code:
                log.error("rpc_failed", root_cause(raised), request_id=request_id)
    if failure is not None:
        await end(context, failure)


async def end(context: Context, error: SegueError) -> None:
    """Ends a call with an error's status. Who reads on gets it; who doesn't is not waited for."""
    status = rpc_status.to_status(as_status(error))
    with suppress(TimeoutError):
        async with asyncio.timeout(STATUS_SECONDS):
            try:
                await context.abort(status.code, status.details or "", status.trailing_metadata or ())
            except grpc.aio.InternalError as over:
                # A deadline that passed as the headers were on their way: its client knows of it by itself.
                raise asyncio.CancelledError from over


@contextmanager
def reading_request() -> Iterator[None]:
    """Within it, whatever vLLM finds wrong is wrong with the request."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise BadField(first["msg"], where=".".join(map(str, first["loc"]))) from error
    except VLLMClientError:
        raise
    except (ValueError, TypeError, TemplateError) as error:
        raise _invalid(str(error), None) from error


def as_segue_error(raised: BaseException) -> SegueError:
    """What a caller is told about ``raised``: its story if meant for callers, else only that it happened."""
    for error in _chain(raised):
        if isinstance(error, SegueError):
            return error
    for error in _chain(raised):
        if known := _known(error):
            known.__cause__ = error  # its words are not ours
            return known
    return SegueError("the request failed inside the gateway", hint="its log has the trace under the request's id")


def _known(error: BaseException) -> SegueError | None:
    if isinstance(error, VLLMNotFoundError):
        return ModelNotFound(str(error))
    if isinstance(error, VLLMClientError):
        return _invalid(str(error.args[0]) if error.args else str(error), getattr(error, "parameter", None))
    if isinstance(error, GracefulHTTPError):
        return _BY_HTTP.get(error.http_status, SegueError)(error.message)
    if isinstance(error, EngineDeadError):
        return WorkerLost("the model's engine is gone", hint="try again", retry_after=1.0)
    return None


def _invalid(what: str, parameter: str | None) -> SegueError:
    """vLLM names the parameter only sometimes; the sentence then nearly always does."""
    named = parameter or next((word for word in re.findall(r"\w+", what) if word in _FIELDS), None)
    if named is None:
        return InvalidRequest(what.rstrip("."))
    return BadField(what.rstrip("."), where=f"sampling.{named}" if named in _FIELDS else named)


def as_status(error: SegueError) -> status_pb2.Status:
    """The google.rpc.Status of an error, with ErrorInfo, and RetryInfo and BadRequest where they apply."""
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN)
    if error.where:
        info.metadata["where"] = error.where
    if error.hint:
        info.metadata["hint"] = error.hint
    details: list[message.Message] = [info]
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(retry)
    if isinstance(error, BadField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.where, description=error.what)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.grpc_code), message=str(error), details=[_packed(detail) for detail in details]
    )


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def root_cause(raised: BaseException) -> BaseException:
    """The error that began it."""
    *_, last = _chain(raised)
    return last


def _chain(raised: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    error: BaseException | None = raised
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__
