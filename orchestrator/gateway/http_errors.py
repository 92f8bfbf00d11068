"""Segue's errors as the bodies that each API's clients expect."""

from __future__ import annotations

import json

from orchestrator.core.errors import SegueError

_OPENAI_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 413: "invalid_request_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

Headers = list[tuple[bytes, bytes]]


def render(error: SegueError, path: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body: Anthropic's shape under /v1/messages, OpenAI's elsewhere."""
    status = error.http_status
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        body: dict[str, object] = {"type": "error", "error": {"type": kind, "message": str(error)}}
    else:
        kind = _OPENAI_TYPES.get(status, "server_error")
        body = {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}
    headers: Headers = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    return status, headers, json.dumps(body).encode()
