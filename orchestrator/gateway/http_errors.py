"""Errors as the bodies that each API's clients expect: OpenAI's, or Anthropic's under /v1/messages."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from orchestrator.core.errors import (
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    RequestTooLarge,
    SegueError,
)

Headers = list[tuple[bytes, bytes]]

_OPENAI_TYPES = {429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CODES = {
    kind.http_status: kind.code for kind in (InvalidRequest, ModelNotFound, RequestTooLarge, Overloaded, NotReady)
}


_STREAM_ERROR = b'data: {"error"'  # as vLLM's streams have them, in OpenAI's APIs


class MethodNotAllowed(SegueError):  # noqa: N818
    """The route exists, for other methods."""

    code, http_status, grpc_code = "method_not_allowed", 405, "UNIMPLEMENTED"

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"no {method} here", where=path, hint=f"it takes {allow}")
        self.allow = allow


class BodyTimeout(SegueError):  # noqa: N818
    """The client stopped in the middle of its body."""

    code, http_status, grpc_code = "body_timeout", 408, "DEADLINE_EXCEEDED"


def is_anthropic(path: str) -> bool:
    """Whether clients of this path expect Anthropic's error shape."""
    return path.startswith("/v1/messages")


def render(error: SegueError, path: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error of ours."""
    status = error.http_status
    body = _anthropic(status, str(error)) if is_anthropic(path) else _openai(status, str(error), error.code)
    headers: Headers = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, BodyTimeout | RequestTooLarge):
        headers.append((b"connection", b"close"))  # the rest of the body is in the way of a next request
    return status, headers, json.dumps(body).encode()


def event(error: SegueError, path: str) -> bytes:
    """An error in a stream of events that has begun, after which nothing comes."""
    _, _, body = render(error, path)
    return b"event: error\ndata: " + body + b"\n\n"


def translated(status: int, body: bytes, path: str) -> bytes:
    """A refusal of vLLM's application as this path's clients expect it: vLLM's words, our shape and code.

    What it can't validate vLLM answers in OpenAI's shape under any path, with the status for a code; what it can't even
    read FastAPI answers in a shape of its own.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    said: Any = answer.get("error", answer.get("detail")) if isinstance(answer, dict) else None
    said = {"message": said} if isinstance(said, str) else said if isinstance(said, dict) else {}
    message = str(said.get("message") or HTTPStatus(status).phrase)
    if is_anthropic(path):
        return json.dumps(_anthropic(status, message)).encode()
    param = said.get("param")
    return json.dumps(_openai(status, message, code_of(status), None if param is None else str(param))).encode()


def of_stream(piece: bytes) -> SegueError | None:
    """The error that a piece of a stream of vLLM's is, in its own shape; None for any other piece."""
    if not piece.startswith(_STREAM_ERROR):
        return None
    try:
        said = json.loads(piece.split(b"\n", 1)[0].removeprefix(b"data: "))["error"]
        status, message = int(said["code"]), str(said["message"])
    except (ValueError, KeyError, TypeError):
        status, message = 500, ""
    return InvalidRequest(message) if 400 <= status < 500 else inside()


def inside() -> SegueError:
    """What a client is told of a defect."""
    return SegueError("the request failed inside the gateway", hint="its log has the trace")


def code_of(status: int) -> str:
    """The code that stands for a refusal of vLLM's own, of which only the status is known."""
    return _CODES.get(status, InvalidRequest.code if status < 500 else SegueError.code)


def _openai(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _anthropic(status: int, message: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
