"""One HTTP exchange as the gateway sees it from outside vLLM's application: what is added to it, what became of it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Sequence

from orchestrator.core.errors import InvalidRequest, SegueError
from orchestrator.gateway import caller, http_errors
from orchestrator.gateway.context import RequestContext
from orchestrator.gateway.http_body import Message, Receive

Send = Callable[[Message], Awaitable[None]]

_ID = re.compile(r"[ -~]{1,128}")
ID_HEADER = b"x-request-id"
_OF_BODY = (b"content-length", b"content-type", b"transfer-encoding")


def request_id(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str, list[tuple[bytes, bytes]]]:
    """The client's id for its request or, if it is none that can be shown, one of ours; and the headers that agree."""
    given = next((value.decode("latin-1") for name, value in headers if name == ID_HEADER), "")
    if _ID.fullmatch(given):
        return given, list(headers)
    return uuid.uuid4().hex, [(name, value) for name, value in headers if name != ID_HEADER]


def headers(pairs: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name; text in UTF-8 where it is that.

    Raises:
        InvalidRequest: one of Segue's own is there twice, and nobody knows which is meant.
    """
    found: dict[str, str] = {}
    for raw, value in pairs:
        name = raw.decode("latin-1")
        if name in caller.HEADERS and name in found:
            raise InvalidRequest("is there twice", where=name)
        try:
            found[name] = value.decode()
        except UnicodeDecodeError:
            found[name] = value.decode("latin-1")
    return found


class Answer:
    """A ``send`` that keeps in mind how far the answer got."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0  # 0 before the answer has begun
        self.streams = False
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.streams = message["status"], _is_stream(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
        await self._send(message)


class Exchange:
    """What stands between the server and vLLM's application for one request.

    A request that the cluster failed is answered by the gateway, since vLLM knows no more of it than a status and has
    begun a stream by then: the start of an answer is held until its first piece shows what it will be. Of a stream,
    pieces that come before a worker has the request are held too.
    """

    def __init__(self, path: str, context: RequestContext, receive: Receive, answer: Answer) -> None:
        self.context = context
        self.answer = answer
        self._path = path
        self._receive = receive
        self._start: Message | None = None
        self._held: list[bytes] = []
        self._over = False  # all was said, whatever vLLM has yet to say
        self._broke: tuple[Message, Message] | None = None
        self.client_left = False
        self._asked = False  # for the body

    @property
    def reads(self) -> bool:
        """Whether the body is being made into vLLM's own types, whose checks trip over some."""
        return self._asked and not self.context.taken

    async def receive(self) -> Message:
        self._asked = True
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.answer.complete:
            self.client_left = True
        return message

    async def send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._start = message
        elif self._start is not None:
            await self._first(self._start, message)
        elif self.answer.streams and (error := self.context.error or http_errors.of_stream(message.get("body", b""))):
            await self.fail(error)
        else:
            await self.answer.send(message)

    async def _first(self, start: Message, message: Message) -> None:
        """A piece of an answer whose start is still held."""
        failed, streams = start["status"] >= 400, _is_stream(start)
        piece = message.get("body", b"")
        error = self.context.error or (http_errors.of_stream(piece) if streams else None)
        if error is not None and (failed or streams):
            await self.fail(error)
            return
        self._held.append(piece)
        waits = failed or (streams and not self.context.placed and not self._held[-1].startswith(b":"))
        if waits and message.get("more_body", False):
            return
        body, self._start = b"".join(self._held), None
        if start["status"] == 500 and not (self._broke or self._over):
            # vLLM's application says so before it says why: the error that follows may know better.
            self._broke, self._over, self._held = (start, {**message, "body": body}), True, []
            return
        if failed:
            body = http_errors.translated(start["status"], body, self._path)
            kept = [(name, value) for name, value in start.get("headers", []) if name.lower() not in _OF_BODY]
            own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            start["headers"] = [*kept, *own]
        self._add_headers(start)
        await self.answer.send(start)
        await self.answer.send({**message, "body": body})

    async def finish(self) -> None:
        """The application has ended without an error of its own."""
        if self._broke is not None and not self.answer.status:
            await self._first(*self._broke)

    async def fail(self, error: SegueError) -> None:
        """Says how the request failed, in place of all that vLLM would still say."""
        self._over = True
        if self.answer.complete:
            return
        if self.answer.status:
            if self.answer.streams:
                last = http_errors.event(error, self._path)
                await self.answer.send({"type": "http.response.body", "body": last, "more_body": False})
            return
        status, headers, body = http_errors.render(error, self._path)
        own = {name for name, _ in headers} | {b"content-length"}
        given = self._start.get("headers", []) if self._start is not None else []  # among them what browsers ask for
        kept = [(name, value) for name, value in given if name.lower() not in own]
        start: Message = {"type": "http.response.start", "status": status}
        start["headers"] = [*kept, *headers, (b"content-length", str(len(body)).encode())]
        self._add_headers(start)
        await self.answer.send(start)
        await self.answer.send({"type": "http.response.body", "body": body, "more_body": False})

    def _add_headers(self, start: Message) -> None:
        """The request's id and, where it has ended before its answer begins, where its halves ran."""
        extra = [(ID_HEADER, self.context.request_id.encode())]
        if self.context.reports:
            report = self.context.reports[-1]
            if report.decode_worker:
                extra.append((b"x-segue-decode", report.decode_worker.encode()))
            if report.prefill_worker:
                extra.append((b"x-segue-prefill", report.prefill_worker.encode()))
        headers = start.get("headers", [])
        if start["status"] in (429, 503) and not any(name.lower() == b"retry-after" for name, _ in headers):
            extra.append((b"retry-after", b"1"))
        start["headers"] = [*headers, *extra]


def _is_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", [])
    )
