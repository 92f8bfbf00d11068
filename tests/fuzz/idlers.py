"""Clients that begin and don't go on: half a head, half a body, a stream that nobody reads, or nothing at all.

They stay while the others are at it. Their connections have to be ended by the gateway, within a bound.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter

from orchestrator.gateway.http_body import PIECE_SECONDS
from orchestrator.gateway.http_protocol import HEAD_SECONDS
from tests.fuzz.aim import Aim

EACH = 40
BOUND_SECONDS = max(HEAD_SECONDS, PIECE_SECONDS) + 15.0
_POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
KINDS = {
    "half a line": b"POST /v1/comp",
    "half a head": _POST,
    "no body": _POST + b"Content-Length: 50\r\n\r\n",
    "half a body": _POST + b'Content-Length: 50\r\n\r\n{"model":',
    "half a chunk": _POST + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{",
}


class Idlers:
    """So many of each kind, from now on."""

    def __init__(self, aim: Aim, each: int = EACH) -> None:
        host, port = aim.http.split(":")
        self._began = time.monotonic()
        self._lines: dict[socket.socket, str] = {}
        for kind, text in KINDS.items():
            for _ in range(each):
                line = socket.create_connection((host, int(port)), timeout=5)
                line.sendall(text)
                self._lines[line] = kind

    def ended(self) -> tuple[int, Counter[str]]:
        """Waits until all were ended or the bound is over: how many there were, and those of each kind that stay."""
        count, open_lines = len(self._lines), dict(self._lines)
        until = max(self._began + BOUND_SECONDS, time.monotonic() + 1.0)  # what was ended long ago is seen at once
        while open_lines and time.monotonic() < until:
            for line in select.select(list(open_lines), [], [], 0.2)[0]:
                if not _more(line):
                    del open_lines[line]
        for line in self._lines:
            line.close()
        return count, Counter(open_lines.values())


def _more(line: socket.socket) -> bytes:
    try:
        return line.recv(1 << 16)
    except ConnectionError:
        return b""
