"""Errors as the bodies that each API's clients expect: OpenAI's, or Anthropic's under /v1/messages."""

from __future__ import annotations

import json
import math
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
    if is_anthropic(path):
        body = _anthropic(status, str(error))
    else:
        kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        body = {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}
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


def as_anthropic(status: int, body: bytes) -> bytes:
    """vLLM's error body as Anthropic's; vLLM answers what it can't validate in OpenAI's shape, and names own types."""
    try:
        error = json.loads(body)["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        return body
    return json.dumps(_anthropic(status, str(message))).encode()


def code_of(status: int) -> str:
    """The code that stands for a refusal of vLLM's own, of which only the status is known."""
    return _CODES.get(status, InvalidRequest.code if status < 500 else SegueError.code)


def _anthropic(status: int, message: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
