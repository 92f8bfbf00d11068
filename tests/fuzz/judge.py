"""What counts as an answer: one of the documented outcomes, in the documented shape. Anything else is a finding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from orchestrator.gateway.http_errors import is_anthropic

# docs/api.md; 500 is documented too, and always a finding unless a worker was at fault.
CODES = {
    400: {"invalid_request", "unsupported"},
    404: {"model_not_found", "route_not_found"},
    405: {"method_not_allowed"},
    408: {"body_timeout"},
    413: {"request_too_large"},
    429: {"overloaded"},
    431: {"headers_too_large"},
    503: {"cluster_full", "not_ready", "worker_lost"},
    504: {"deadline_exceeded"},
}
WORKERS_FAULT = {500: {"internal", "protocol"}}
_BARE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,
}


class Untyped(AssertionError):  # noqa: N818
    """An outcome that the documentation does not know."""


def http(
    path: str, status: int, kind: str, body: bytes, *, head: bool = False, codes: Mapping[int, set[str]] | None = None
) -> str:
    """The outcome of an HTTP request in words, or Untyped. ``kind``: the content type of the answer."""
    known = {**CODES, **(codes or {})}
    if status == 200:
        return "200" if head else f"200{_good(kind, body, known)}"
    if status not in known:
        raise Untyped(f"status {status}: {body[:500]!r}")
    if head:
        return str(status)
    return f"{status} {_code(path, status, body, known)}"


def _good(kind: str, body: bytes, known: Mapping[int, set[str]]) -> str:
    if kind.startswith("text/event-stream"):
        return _events(body, known)
    if kind.startswith("application/json"):
        _json(body)
    return ""


def _events(body: bytes, known: Mapping[int, set[str]]) -> str:
    """A stream: all of its events can be read, and an error is its last one."""
    error = ""
    for event in body.decode().split("\n\n"):
        for line in event.split("\n"):
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            if error:
                raise Untyped(f"something after an error in a stream: {line[:300]}")
            said = _json(line[6:].encode())
            if isinstance(said, dict) and said.get("error") and "choices" not in said and "response" not in said:
                error = _of_event(said["error"], known)
    return f" stream{error}"


def _of_event(error: Any, known: Mapping[int, set[str]]) -> str:
    """Ours have a code; Anthropic's have none, and vLLM's own (of a request that was wrong) have the status."""
    code = error.get("code")
    if isinstance(code, int) and code >= 500:
        raise Untyped(f"an untyped error in a stream: {error}")
    if code is not None and not isinstance(code, int) and not any(code in codes for codes in known.values()):
        raise Untyped(f"an unknown code in a stream: {error}")
    return f" {code or error.get('type')}"


def _code(path: str, status: int, body: bytes, known: Mapping[int, set[str]]) -> str:
    answer = _json(body)
    try:
        error = answer["error"]
        message, kind = error["message"], error["type"]
        if not (isinstance(message, str) and message and isinstance(kind, str)):
            raise Untyped(f"{status} with no message: {body[:500]!r}")
        if answer.get("type") == "error":
            if not is_anthropic(path):
                raise Untyped(f"Anthropic's shape on {path}: {body[:500]!r}")
            return f"anthropic {kind}"
        code = error["code"]
    except (KeyError, TypeError):
        raise Untyped(f"{status} in a shape of its own: {body[:500]!r}") from None
    if code not in known[status]:
        raise Untyped(f"{status} with code {code!r}: {body[:500]!r}")
    return str(code)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Untyped(f"no JSON: {text[:300]!r}") from None


def rpc(error: grpc.RpcError | None) -> str:
    """The outcome of a call in words, or Untyped."""
    if error is None:
        return "OK"
    code = error.code()
    reasons = [info.reason for info in _details(error.trailing_metadata() or ())]
    if reasons == ["internal"] or (not reasons and code not in _BARE):
        raise Untyped(f"{code.name} {reasons}: {error.details()}")
    return f"{code.name} {reasons[0] if reasons else '-'}"


def _details(metadata: Any) -> Iterator[error_details_pb2.ErrorInfo]:
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    yield info


def internal(error: grpc.RpcError | None) -> str:
    """The outcome of a call among our own: no ErrorInfo there, so the code has to say whose fault it was."""
    if error is None:
        return "OK"
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        raise Untyped(f"{error.code().name}: {error.details()}")
    return str(error.code().name)
