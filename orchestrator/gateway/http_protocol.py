"""uvicorn's HTTP/1.1 with bounds that it has none of its own: on what comes before a body, in bytes and in time, and on
how long an answer may wait to be read."""

from __future__ import annotations

import asyncio
import json
import socket
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 64 << 10
HEAD_SECONDS = 30.0
UNREAD_SECONDS = 60.0
DISCARD_SECONDS = 2.0
_SLICE = 8 << 10


def bound_unread(listener: socket.socket) -> None:
    """Has the kernel end those of its connections whose peer takes nothing for ``UNREAD_SECONDS`` though something is
    there for it: it alone knows, and closing a connection waits for what is unsent without end."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1000))


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 where request line and headers are over ``HEAD_BYTES`` (give or take a slice)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._running: RequestResponseCycle | None = None  # not always uvicorn's ``cycle``, which is the newest

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        while data and self._in_head and not (self._refused or self.transport.is_closing()):
            piece, data = data[:_SLICE], data[_SLICE:]
            self._head_bytes += len(piece)
            super().data_received(piece)
            if self._in_head and self._head_bytes > HEAD_BYTES:
                self._refuse()
        if data and not (self._refused or self.transport.is_closing()):
            super().data_received(data)

    def on_message_begin(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def eof_received(self) -> None:
        """A client that sends no more is one that left, as always with HTTP/1.1; the connection is closed hereafter."""
        self._give_up()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._give_up()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        self._answer(HTTPStatus.BAD_REQUEST, "what came is no HTTP request", "invalid_request")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up(self) -> None:
        """Ends what is being answered, and forgets what was to be: nothing may be written from here on."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.waiting_for_100_continue = False
            self._running.message_event.set()
        self.pipeline.clear()

    def _refuse(self) -> None:
        message = f"request line and headers are over {HEAD_BYTES} bytes"
        self._answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, "headers_too_large")

    def _answer(self, status: HTTPStatus, message: str, code: str) -> None:
        """Ends the connection with it; without, where an answer has begun, for the two would run into each other."""
        running = self._running
        self._give_up()
        if running is not None and running.response_started and not running.response_complete:
            self.transport.close()
            return
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, status.phrase.encode(), len(body), body)
        )
        # Closing with unread data resets the connection, and the client would lose the answer.
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(DISCARD_SECONDS, self.transport.close)
