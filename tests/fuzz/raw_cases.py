"""Bytes on the HTTP port that no client library would send."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from tests.fuzz import judge
from tests.fuzz.aim import Aim

CASE_SECONDS = 6.0
_BODY = b'{"model":"together","prompt":"a","max_tokens":1}'
_LENGTH = b"Content-Length: %d\r\n" % len(_BODY)


def _post(headers: bytes, body: bytes, line: bytes = b"POST /v1/completions HTTP/1.1") -> bytes:
    return line + b"\r\nHost: x\r\nContent-Type: application/json\r\n" + headers + b"\r\n" + body


WHOLE = _post(_LENGTH, _BODY)
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)
_STREAM = b'{"model":"together","prompt":"a","max_tokens":100,"stream":true}'
STREAM = _post(b"Content-Length: %d\r\n" % len(_STREAM), _STREAM)

SHAPES = [
    WHOLE,
    STREAM,
    _post(_CHUNKED, _CHUNKS),
    _post(_LENGTH + _CHUNKED, _CHUNKS),  # both: who believes which?
    _post(_CHUNKED + _LENGTH, _BODY),
    _post(b"Transfer-Encoding: gzip, chunked\r\n", _CHUNKS),
    _post(b"Transfer-Encoding: xchunked\r\n", _CHUNKS),
    _post(b"Transfer-Encoding : chunked\r\n", _CHUNKS),
    _post(b"Content-Length: 5\r\nContent-Length: 6\r\n", _BODY),
    _post(b"Content-Length: -1\r\n", _BODY),
    _post(b"Content-Length: +48\r\n", _BODY),
    _post(b"Content-Length: 99999999999999999999999\r\n", _BODY),
    _post(b"Content-Length: 0x30\r\n", _BODY),
    _post(b"X-A: b\r\n c: folded\r\n" + _LENGTH, _BODY),
    _post(b"\r\n: no name\r\n" + _LENGTH, _BODY),
    _post(b"X-A\x00: b\r\n" + _LENGTH, _BODY),
    _post(b"Expect: 100-continue\r\n" + _LENGTH, _BODY),
    _post(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n", b""),
    _post(b"Connection: close\r\n" + _LENGTH, _BODY),
    _post(_CHUNKED, b"FFFFFFFFFFFFFFFF\r\n" + _BODY),
    _post(_CHUNKED, b"-1\r\n" + _BODY),
    _post(_CHUNKED, b"5;" + b"x" * 70_000 + b"\r\n"),
    _post(_LENGTH, _BODY, b"POST /v1/completions HTTP/1.0"),
    _post(_LENGTH, _BODY, b"POST /v1/completions HTTP/9.9"),
    _post(_LENGTH, _BODY, b"POST http://other/v1/completions HTTP/1.1"),
    _post(_LENGTH, _BODY, b"POST /v1/%00%ff%zz HTTP/1.1"),
    _post(_LENGTH, _BODY, b"POST /v1/models/\xff\xfe HTTP/1.1"),
    _post(_LENGTH, _BODY, b"post /v1/completions HTTP/1.1"),
    _post(_LENGTH, _BODY, b"FROB /v1/completions HTTP/1.1"),
    _post(b"", b"", b"CONNECT other:443 HTTP/1.1"),
    _post(b"", b"", b"OPTIONS * HTTP/1.1"),
    _post(b"", b"", b"PRI * HTTP/2.0"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,  # TLS on a plain port
    b"GET /health\r\n\r\n",
    b"\r\n\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/1.1\nHost: x\n\n",
]
_PIECES = [b"\r\n", b"\n", b"\x00", b" ", b":", b"\t", b"\xff", b"HTTP/1.1", b"0\r\n\r\n", b"A" * 9000, *SHAPES[:3]]


@dataclass(frozen=True)
class Talk:
    """Bytes, piece by piece. ``end``: shut (no more comes), leave (closes at once), reset (with unread data), read."""

    pieces: tuple[bytes, ...]
    end: str

    def __repr__(self) -> str:
        return f"end={self.end} {[piece if len(piece) < 600 else piece[:600] + b'...' for piece in self.pieces]}"


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """One connection's bytes."""
    text = b"".join(draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)))
    if draw(st.integers(0, 12)) == 0:
        text = draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(text)))
        kind = draw(st.sampled_from(["cut", "flip", "put"]))
        if kind == "cut":
            text = text[:at]
        elif kind == "flip":
            text = text[:at] + bytes([draw(st.integers(0, 255))]) + text[at + 1 :]
        else:
            text = text[:at] + draw(st.sampled_from(_PIECES)) + text[at:]
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    edges = [0, *cuts, len(text)]
    pieces = tuple(text[a:b] for a, b in pairwise(edges) if a < b)
    return Talk(pieces, draw(st.sampled_from(["shut", "shut", "shut", "leave", "reset"])))


class Line:
    """Connections to the port, one a case."""

    def __init__(self, aim: Aim) -> None:
        host, port = aim.http.split(":")
        self._address = host, int(port)

    def run(self, talk: Talk) -> str:
        """What came back, in words: the statuses of all answers."""
        with socket.create_connection(self._address, timeout=CASE_SECONDS) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for piece in talk.pieces:
                    line.sendall(piece)
            except ConnectionError:
                return self._judged(self._rest(line))
            if talk.end == "leave":
                return "left"
            if talk.end == "reset":
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                return "reset"
            with suppress(OSError):  # it may have ended the connection before all was sent
                line.shutdown(socket.SHUT_WR)
            return self._judged(self._rest(line))

    def _rest(self, line: socket.socket) -> bytes:
        until, parts = time.monotonic() + CASE_SECONDS, []
        while True:
            try:
                part = line.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError:
                part = b""
            if not part:
                return b"".join(parts)
            parts.append(part)
            if time.monotonic() > until:
                raise TimeoutError

    @staticmethod
    def _judged(heard: bytes) -> str:
        """Reads answers one after the other; the last one may be cut short, since whoever sends rubbish is left."""
        found, rest = [], heard
        while rest:
            head, split, rest = rest.partition(b"\r\n\r\n")
            if not split or not head.startswith(b"HTTP/1."):
                if found and not head.startswith(b"HTTP/1."):
                    raise judge.Untyped(f"no HTTP after {found}: {head[:200]!r}")
                break
            status = int(head.split(b" ")[1])
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            if status == 100:
                continue
            body, rest = _body(fields, rest)
            kind = fields.get(b"content-type", b"").decode("latin-1")
            if body is None:
                found.append(f"{status} cut")
            elif status == 200:
                found.append("200")
            else:
                found.append(judge.http("/v1/completions", status, kind, body))
        return " ".join(found[:2]) + (" ..." if len(found) > 2 else "") or "closed"


def _body(fields: dict[bytes, bytes], rest: bytes) -> tuple[bytes | None, bytes]:
    """An answer's body and what follows it; None if it is cut short."""
    if b"content-length" in fields:
        size = int(fields[b"content-length"])
        return (rest[:size], rest[size:]) if len(rest) >= size else (None, b"")
    body = b""
    while True:
        size_text, split, rest = rest.partition(b"\r\n")
        if not split or not size_text.strip():
            return None, b""
        size = int(size_text, 16)
        if len(rest) < size + 2:
            return None, b""
        body, rest = body + rest[:size], rest[size + 2 :]
        if size == 0:
            return body, rest
