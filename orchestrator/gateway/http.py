"""OpenAI-compatible HTTP: an ASGI application that finds the model a request names and hands it to vLLM's own API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

from opentelemetry.trace import Span, SpanKind

from orchestrator.core.errors import InvalidRequest, ModelNotFound, NotReady, RouteNotFound, SegueError, Unsupported
from orchestrator.gateway import caller, http_body, http_errors, http_exchange, openapi
from orchestrator.gateway.context import CURRENT, RequestContext
from orchestrator.gateway.frontend import Front
from orchestrator.gateway.http_body import Fields, Receive
from orchestrator.gateway.http_errors import MethodNotAllowed
from orchestrator.gateway.http_exchange import Answer, Exchange, Send
from orchestrator.gateway.routes import MODEL_PREFIX, MODEL_ROUTES, OWN_ROUTES, WITHOUT_WORKERS
from orchestrator.gateway.underway import Underway
from orchestrator.telemetry import logs, tracing
from orchestrator.telemetry.metrics import GatewayMetrics

_DISCARD_SECONDS = 2.0

log = logs.events("gateway.http")


class HttpView(Protocol):
    """What this edge needs of the gateway, beyond ``ports.GatewayView``."""

    metrics: GatewayMetrics
    underway: Underway  # as in ``ports.GatewayView``

    def front(self, model: str) -> Front:
        """As in ``ports.GatewayView``; raises NotReady too while the gateway drains."""
        ...

    def fronts(self) -> list[Front]: ...

    def knock(self, model: str, context: RequestContext) -> None:
        """As in ``ports.GatewayView``."""
        ...

    def not_ready(self) -> list[str]:
        """What is missing before every pool serves, in words; empty if nothing."""
        ...


class HttpEdge:
    """The ASGI application."""

    def __init__(self, gateway: HttpView, max_body_bytes: int) -> None:
        self._gateway = gateway
        self._max_body_bytes = max_body_bytes
        self._document: tuple[set[str], bytes] = set(), b""  # of which routes, and the document

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        answer = Answer(send)
        try:
            if self._is_own(scope):
                await _respond(answer.send, *(await self._own(scope["path"])))
            else:
                await self._dispatch(scope, receive, answer)
        except SegueError as error:
            await self._refuse(error, scope["path"], receive, answer)
        except Exception as error:
            log.error("http_failed", error)
            await self._refuse(http_errors.inside(), scope["path"], receive, answer)

    async def _refuse(
        self, error: SegueError, path: str, receive: Receive, answer: Answer, request_id: str = ""
    ) -> None:
        """Tells the client, if it has not been told anything yet; the server closes what was begun and not ended."""
        if answer.status:
            return
        self._gateway.metrics.refused("http", error.code)
        status, headers, body = http_errors.render(error, path)
        if request_id:
            headers.append((http_exchange.ID_HEADER, request_id.encode()))
        closes = (b"connection", b"close") in headers
        await _respond(answer.send, status, headers, body, more=closes)
        if closes:
            await http_body.discard(receive, _DISCARD_SECONDS)
            await answer.send({"type": "http.response.body", "body": b""})

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
            raise MethodNotAllowed(method, path, f"{allowed}, HEAD" if own else allowed)
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
        if path == "/openapi.json":
            return 200, [(b"content-type", b"application/json")], await self._openapi()
        cards = [card for front in self._gateway.fronts() for card in await _cards(front)]
        if path == "/v1/models":
            return _json(200, {"object": "list", "data": cards})
        name = path.removeprefix(MODEL_PREFIX)
        for card in cards:
            if card["id"] == name:
                return _json(200, card)
        raise ModelNotFound(f"no model '{name}' is served here", hint="GET /v1/models lists them")

    async def _openapi(self) -> bytes:
        """Made once for the routes that there are; it takes a second, in which others must not wait."""
        described: set[str] = set()
        apps = []
        for front in self._gateway.fronts():
            if front.app is not None and (MODEL_ROUTES.keys() & front.paths) - described:
                described |= MODEL_ROUTES.keys() & front.paths
                apps.append(front.app)
        if not self._document[1] or self._document[0] != described:
            made = await asyncio.to_thread(lambda: openapi.encoded([app.openapi() for app in apps]))
            self._document = described, made
        return self._document[1]

    # ---- the model's

    async def _dispatch(self, scope: MutableMapping[str, Any], receive: Receive, answer: Answer) -> None:
        body = await http_body.read(scope["headers"], receive, self._max_body_bytes)
        if body is None:
            return
        fields = http_body.fields(body)
        front = self._gateway.front(fields.model)
        with self._gateway.underway:
            await self._answer(front, fields, scope, http_body.replay(body, receive), answer)

    async def _answer(
        self, front: Front, fields: Fields, scope: MutableMapping[str, Any], receive: Receive, answer: Answer
    ) -> None:
        if scope["path"] not in front.paths or front.app is None:
            can = ", ".join(front.tasks)
            raise Unsupported(f"{front.name} does not serve {scope['path']}", hint=f"it can: {can}")
        if not front.ready():
            missing = "; ".join(self._gateway.not_ready())
            raise NotReady(f"{front.name} is not ready: {missing}", retry_after=5.0)
        request_id, scope["headers"] = http_exchange.request_id(scope["headers"])
        context = RequestContext(request_id)
        headers = http_exchange.headers(scope["headers"])
        caller.fill(context, headers, caller.named(fields.users), caller.named(fields.sessions))
        context.deadline = caller.deadline(headers)
        if scope["path"] not in WITHOUT_WORKERS:
            try:
                self._gateway.knock(front.name, context)
            except SegueError as error:
                await self._refuse(error, scope["path"], receive, answer, request_id)
                return
        await self._run(front, scope, headers, Exchange(scope["path"], context, receive, answer))

    async def _run(
        self, front: Front, scope: MutableMapping[str, Any], headers: Mapping[str, str], exchange: Exchange
    ) -> None:
        context = exchange.context
        span = tracing.start(
            "segue.request", tracing.extract(headers), SpanKind.SERVER, model=front.name, route=scope["path"]
        )
        context.trace = tracing.inject(span) or {k: headers[k] for k in ("traceparent", "tracestate") if k in headers}
        token = CURRENT.set(context)
        try:
            with tracing.active(span):
                try:
                    await _in_application(front, scope, exchange)
                finally:
                    self._ended(span, exchange)
        finally:
            CURRENT.reset(token)

    def _ended(self, span: Span, exchange: Exchange) -> None:
        answer = exchange.answer
        if answer.status:
            tracing.note(span, **{"http.response.status_code": answer.status})
        if exchange.client_left and not answer.complete:
            tracing.note(span, outcome="cancelled")
        elif answer.status >= 500:
            tracing.fail_as(span, http_errors.code_of(answer.status))
        reached = bool(exchange.context.reports)  # and so is counted by its outcome
        if answer.status >= 400 and not reached:
            self._gateway.metrics.refused("http", http_errors.code_of(answer.status))


async def _in_application(front: Front, scope: MutableMapping[str, Any], exchange: Exchange) -> None:
    assert front.app is not None  # noqa: S101
    try:
        await front.app(scope, exchange.receive, exchange.send)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except Exception as error:
        if exchange.context.error is not None:
            await exchange.fail(exchange.context.error)
        elif exchange.reads:
            what = f"the body has something in a place where it can't be ({type(error).__name__})"
            raise InvalidRequest(what, hint="compare it with /openapi.json") from error
        else:
            log.error("http_failed", error, request_id=exchange.context.request_id)
            raise http_errors.inside() from error
    else:
        await exchange.finish()


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


async def _respond(send: Send, status: int, headers: http_errors.Headers, body: bytes, more: bool = False) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})
