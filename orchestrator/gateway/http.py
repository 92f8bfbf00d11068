"""OpenAI-compatible HTTP: an ASGI application that finds the model a request names and hands it to vLLM's own API."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import msgspec
from opentelemetry.trace import SpanKind

from orchestrator.core.errors import (
    InvalidRequest,
    ModelNotFound,
    NotReady,
    RequestTooLarge,
    RouteNotFound,
    SegueError,
    Unsupported,
)
from orchestrator.gateway import http_errors
from orchestrator.gateway.context import CURRENT, RequestContext
from orchestrator.gateway.frontend import Front
from orchestrator.gateway.routes import MODEL_PREFIX, MODEL_ROUTES, OWN_ROUTES
from orchestrator.telemetry import tracing
from orchestrator.telemetry.metrics import GatewayMetrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class HttpView(Protocol):
    """What this edge needs of the gateway, beyond ``ports.GatewayView``."""

    metrics: GatewayMetrics

    def front(self, model: str) -> Front:
        """As in ``ports.GatewayView``; raises NotReady too while the gateway drains."""
        ...

    def fronts(self) -> list[Front]: ...

    def not_ready(self) -> list[str]:
        """What is missing before every pool serves, in words; empty if nothing."""
        ...


class _Peek(msgspec.Struct):
    """The one field that dispatch needs; the rest of the body is not looked at here."""

    model: str | None = None


class HttpEdge:
    """The ASGI application."""

    def __init__(self, gateway: HttpView, max_body_bytes: int) -> None:
        self._gateway = gateway
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        path = scope["path"]
        try:
            if self._is_own(scope):
                await _respond(send, *(await self._own(path)))
            else:
                await self._dispatch(scope, receive, send)
        except SegueError as error:
            await _respond(send, *http_errors.render(error, path))

    # ---- the gateway's own

    @staticmethod
    def _is_own(scope: MutableMapping[str, Any]) -> bool:
        """Whether the gateway answers it itself; raises RouteNotFound if nobody does."""
        path, method = scope["path"], scope["method"]
        own = OWN_ROUTES.get(path) or ("GET" if path.startswith(MODEL_PREFIX) else None)
        allowed = own or MODEL_ROUTES.get(path)
        if allowed is None:
            raise RouteNotFound(f"no route {method} {path}", hint="docs/api.md lists the routes")
        if method != allowed and not (own and method == "HEAD"):
            raise MethodNotAllowed(f"{path} takes {allowed}, not {method}")
        return own is not None

    async def _own(self, path: str) -> tuple[int, http_errors.Headers, bytes]:
        if path == "/health":
            return _json(200, {"status": "alive"})
        if path == "/ready":
            missing = self._gateway.not_ready()
            return _json(503 if missing else 200, {"ready": not missing, "missing": missing})
        if path == "/metrics":
            body, content_type = self._gateway.metrics.render()
            return 200, [(b"content-type", content_type.encode())], body
        cards = [card for front in self._gateway.fronts() for card in await _cards(front)]
        if path == "/v1/models":
            return _json(200, {"object": "list", "data": cards})
        name = path.removeprefix(MODEL_PREFIX)
        for card in cards:
            if card["id"] == name:
                return _json(200, card)
        raise ModelNotFound(f"no model '{name}' is served here", hint="GET /v1/models lists them")

    # ---- the model's

    async def _dispatch(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        body = await self._body(receive)
        if body is None:
            return
        front = self._gateway.front(_model_of(body))
        if scope["path"] not in front.paths or front.app is None:
            can = ", ".join(front.tasks)
            raise Unsupported(f"{front.name} does not serve {scope['path']}", hint=f"it can: {can}")
        if not front.ready():
            missing = "; ".join(self._gateway.not_ready())
            raise NotReady(f"{front.name} is not ready: {missing}", retry_after=5.0)
        await self._run(front, scope, _replay(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client left before it had sent it."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body_bytes:
                raise RequestTooLarge(f"the body is over {self._max_body_bytes} bytes")
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _run(self, front: Front, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        context = RequestContext(headers.get("x-request-id") or uuid.uuid4().hex)
        span = tracing.start(
            "segue.request", tracing.extract(headers), SpanKind.SERVER, model=front.name, route=scope["path"]
        )
        context.trace = tracing.inject(span) or {k: headers[k] for k in ("traceparent", "tracestate") if k in headers}
        token = CURRENT.set(context)
        try:
            with tracing.active(span):
                assert front.app is not None  # noqa: S101
                await front.app(scope, receive, _with_headers(send, context))
        finally:
            CURRENT.reset(token)


class MethodNotAllowed(SegueError):  # noqa: N818
    """The route exists, for another method."""

    code, http_status, grpc_code = "method_not_allowed", 405, "UNIMPLEMENTED"


def _model_of(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Peek).model or ""
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body must be a JSON object whose `model` is a string: {error}") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body that was read already, then what still comes (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _with_headers(send: Send, context: RequestContext) -> Send:
    """Adds the request's id and, where it has ended before its response begins, where its halves ran."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(b"x-request-id", context.request_id.encode("latin-1", "replace"))]
            if context.reports:
                report = context.reports[-1]
                extra.append((b"x-segue-decode", report.decode_worker.encode()))
                if report.prefill_worker:
                    extra.append((b"x-segue-prefill", report.prefill_worker.encode()))
            headers = message.get("headers", [])
            if message["status"] in (429, 503) and not any(name.lower() == b"retry-after" for name, _ in headers):
                extra.append((b"retry-after", b"1"))
            message["headers"] = [*headers, *extra]
        await send(message)

    return sending


async def _cards(front: Front) -> list[dict[str, Any]]:
    if front.state is None:
        return []
    listing = await front.state.openai_serving_models.show_available_models()
    cards = [card.model_dump(exclude_none=True) for card in listing.data]
    for card in cards:
        card["owned_by"], card["root"] = "segue", front.source  # not the folder on this machine
    return cards


def _json(status: int, value: object) -> tuple[int, http_errors.Headers, bytes]:
    return status, [(b"content-type", b"application/json")], json.dumps(value).encode()


async def _respond(send: Send, status: int, headers: http_errors.Headers, body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
