"""One HTTP exchange as the gateway sees it from outside vLLM's application: what is added to it, what became of it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Sequence

from orchestrator.gateway import http_errors
from orchestrator.gateway.context import RequestContext
from orchestrator.gateway.http_body import Message, Receive

Send = Callable[[Message], Awaitable[None]]

_ID = re.compile(r"[ -~]{1,128}")
_ID_HEADER = b"x-request-id"


def request_id(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str, list[tuple[bytes, bytes]]]:
    """The client's id for its request or, if it is none that can be shown, one of ours; and the headers that agree."""
    given = next((value.decode("latin-1") for name, value in headers if name == _ID_HEADER), "")
    if _ID.fullmatch(given):
        return given, list(headers)
    return uuid.uuid4().hex, [(name, value) for name, value in headers if name != _ID_HEADER]


class Answer:
    """A ``send`` that keeps in mind how far the answer got."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0  # 0 before the answer has begun
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
        await self._send(message)


class Exchange:
    """What stands between the server and vLLM's application for one request."""

    def __init__(self, path: str, context: RequestContext, receive: Receive, answer: Answer) -> None:
        self._anthropic = http_errors.is_anthropic(path)
        self._context = context
        self._receive = receive
        self._answer = answer
        self._held: Message | None = None  # the start of an answer that is being translated
        self._body = b""
        self.client_left = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._answer.complete:
            self.client_left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._anthropic and message["status"] >= 400:
                self._held = message
                return
            self._add_headers(message)
        elif self._held is not None:
            self._body += message.get("body", b"")
            if message.get("more_body", False):
                return
            start, self._held = self._held, None
            message = {**message, "body": http_errors.as_anthropic(start["status"], self._body)}
            kept = [(name, value) for name, value in start.get("headers", []) if name.lower() != b"content-length"]
            start["headers"] = [*kept, (b"content-length", str(len(message["body"])).encode())]
            self._add_headers(start)
            await self._answer.send(start)
        await self._answer.send(message)

    def _add_headers(self, start: Message) -> None:
        """The request's id and, where it has ended before its answer begins, where its halves ran."""
        extra = [(_ID_HEADER, self._context.request_id.encode())]
        if self._context.reports:
            report = self._context.reports[-1]
            extra.append((b"x-segue-decode", report.decode_worker.encode()))
            if report.prefill_worker:
                extra.append((b"x-segue-prefill", report.prefill_worker.encode()))
        headers = start.get("headers", [])
        if start["status"] in (429, 503) and not any(name.lower() == b"retry-after" for name, _ in headers):
            extra.append((b"retry-after", b"1"))
        start["headers"] = [*headers, *extra]
