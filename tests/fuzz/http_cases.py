"""HTTP requests that began as valid ones."""

from __future__ import annotations

import gzip
import http.client
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from orchestrator.gateway.routes import MODEL_ROUTES, OWN_ROUTES
from tests.fuzz import judge, values
from tests.fuzz.aim import Aim
from tests.fuzz.values import Members, Raw

CASE_SECONDS = 8.0
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
_TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

BASES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": _TALK, "max_tokens": 2},
        {"messages": _TALK, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}, "seed": 1},
        {
            "messages": _TALK,
            "max_tokens": 2,
            "n": 2,
            "temperature": 0.5,
            "top_p": 0.5,
            "logprobs": True,
            "top_logprobs": 2,
        },
        {"messages": _TALK, "max_tokens": 2, "tools": [TOOL], "tool_choice": "auto"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 1, "stop": ["x"]},
        {
            "messages": _TALK,
            "max_tokens": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}},
        },
    ],
    "/v1/completions": [
        {"prompt": "once", "max_tokens": 2},
        {"prompt": [1, 2, 3], "max_tokens": 2, "stream": True, "logprobs": 1, "echo": True},
        {"prompt": ["a", "b"], "max_tokens": 1, "best_of": 1, "logit_bias": {"5": 1.0}, "stop": ["a"], "min_tokens": 1},
        {
            "prompt": "a",
            "max_tokens": 2,
            "allowed_token_ids": [5],
            "stop_token_ids": [7],
            "bad_words": ["x"],
            "truncate_prompt_tokens": 1,
        },
        {
            "prompt": "a",
            "max_tokens": 2,
            "structured_outputs": {"regex": "a+"},
            "prompt_logprobs": 1,
            "user": "u",
            "priority": 1,
        },
        {
            "prompt": "a",
            "max_tokens": 2,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
            "repetition_penalty": 1.1,
            "cache_salt": "s",
        },
    ],
    "/v1/responses": [
        {"input": "hello", "max_output_tokens": 2},
        {
            "input": [{"role": "user", "content": "hello"}],
            "max_output_tokens": 2,
            "stream": True,
            "tools": [],
            "store": False,
        },
    ],
    "/v1/messages": [
        {"messages": _TALK[1:], "max_tokens": 2, "system": "x", "stop_sequences": ["x"], "metadata": {"user_id": "u"}},
        {"messages": _TALK[1:], "max_tokens": 2, "stream": True},
    ],
    "/v1/messages/count_tokens": [{"messages": _TALK[1:]}],
    "/v1/embeddings": [{"input": "a"}],
    "/tokenize": [{"prompt": "a b c"}, {"messages": _TALK, "add_generation_prompt": True}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}


@dataclass(frozen=True)
class Request:
    """A request as a client library would send it. ``pieces``: sizes of a chunked body's chunks; 0 without chunks."""

    path: str
    body: bytes = field(repr=False)
    headers: tuple[tuple[str, bytes], ...] = ()
    method: str = "POST"
    pieces: int = 0

    def __repr__(self) -> str:
        shown = self.body if len(self.body) <= 2000 else self.body[:2000] + b"... %d bytes" % len(self.body)
        headers = [(name, value if len(value) < 100 else b"%d bytes" % len(value)) for name, value in self.headers]
        return f"{self.method} {self.path} headers={headers!r} pieces={self.pieces} body={shown!r}"


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value, the root's first."""
    found = [at]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += places(inner, (*at, index))
    return found


def changed(value: Any, at: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy in which the container of ``at`` was changed."""
    if len(at) == 1:
        copy = value.copy()
        change(copy, at[0])
        return copy
    copy = value.copy()
    copy[at[0]] = changed(value[at[0]], at[1:], change)
    return copy


@st.composite
def bodies(draw: st.DrawFn, base: dict[str, Any], names: list[str]) -> Any:
    """A valid body after a few changes."""
    body: Any = {"model": draw(st.sampled_from(["together", "apart"])), **base}
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["set", "set", "add", "add", "drop", "again"]))
        if kind == "add":
            name = draw(st.one_of(st.sampled_from(names), st.sampled_from(names), values.odd_text))
            body = {**body, name: draw(values.anything)}
            continue
        at = draw(st.sampled_from([place for place in places(body) if place]))
        if kind == "set":
            new = draw(values.anything)
            body = changed(body, at, lambda inside, key, new=new: inside.__setitem__(key, new))
        elif kind == "drop":
            body = changed(body, at, lambda inside, key: inside.__delitem__(key))
        else:
            return Members([*body.items(), (at[0], draw(values.anything))])
        if not body:
            break
    return body


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """Bytes that lost, gained or swapped something."""
    at = draw(st.integers(0, len(body)))
    kind = draw(st.sampled_from(["cut", "flip", "put", "bom", "utf16", "twice", "zero"]))
    if kind == "cut":
        return body[:at]
    if kind == "flip":
        return body[:at] + bytes([draw(st.integers(0, 255))]) + body[at + 1 :]
    if kind == "put":
        return body[:at] + draw(st.binary(max_size=8)) + body[at:]
    if kind == "bom":
        return b"\xef\xbb\xbf" + body
    if kind == "utf16":
        return body.decode("utf-8", "replace").encode("utf-16")
    return body + body if kind == "twice" else body + b"\x00"


_header_text = st.one_of(
    st.sampled_from(
        [b"", b"nan", b"-1", b"1e9", b"0", b"inf", b"a" * 200, b"\xff\xfe", b"a,b", b"99999999999999999999", b"1_0"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12).map(
        lambda text: text.encode("latin-1")
    ),
)
_OURS = [
    "x-segue-tenant",
    "x-segue-priority",
    "x-segue-session",
    "x-request-timeout",
    "x-request-id",
    "traceparent",
    "tracestate",
]
headers = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(_OURS), _header_text),
        st.tuples(
            st.sampled_from(["content-type", "accept", "content-encoding", "origin", "expect", "authorization"]),
            _header_text,
        ),
        st.sampled_from(
            [
                ("content-type", b"text/plain"),
                ("content-type", b"multipart/form-data; boundary=x"),
                ("content-type", b"application/json; charset=utf-16"),
                ("content-encoding", b"gzip"),
                ("content-encoding", b"deflate, br"),
                ("upgrade", b"websocket"),
                ("connection", b"Upgrade"),
                ("accept", b"text/event-stream"),
            ]
        ),
        st.integers(0, 700).map(lambda n: ("x-much", b"v" * n * 100)),
    ),
    max_size=4,
).map(tuple)


@st.composite
def requests(draw: st.DrawFn, names: list[str]) -> Request:
    """One request."""
    path = draw(
        st.sampled_from(
            [
                *BASES,
                *BASES,
                *OWN_ROUTES,
                "/v1/models/together",
                "/v1/models/\u0663",
                "/nowhere",
                "//",
                "/v1/chat/completions/",
            ]
        )
    )
    base = draw(st.sampled_from(BASES.get(path, [{}])))
    ascii_only = draw(st.booleans())
    body = values.dumps(draw(bodies(base, names)), ascii_only=ascii_only).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 5)) == 0:
        body = draw(damaged(body))
    given = draw(st.one_of(st.just(()), headers))
    if ("content-encoding", b"gzip") in given and draw(st.booleans()):
        body = gzip.compress(body + b" " * (4 << 20), 1)
    usual = MODEL_ROUTES.get(path, "GET")
    method = draw(st.sampled_from([usual] * 12 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "POST", "TRACE"]))
    return Request(path, body, given, method, draw(st.sampled_from([0, 0, 0, 1, 7, 4096])))


class Client:
    """One connection at a time, kept while the server keeps it."""

    def __init__(self, aim: Aim) -> None:
        self._aim = aim
        self._connection: http.client.HTTPConnection | None = None
        aim.held.callback(self._close)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def send(self, request: Request) -> tuple[int, str, bytes]:
        """Status, content type and whole body."""
        for attempt in (0, 1):
            fresh = self._connection is None
            connection = self._connection = self._connection or http.client.HTTPConnection(
                self._aim.http, timeout=CASE_SECONDS
            )
            try:
                self._write(connection, request)
                response = connection.getresponse()
                body = response.read()
            except (ConnectionError, http.client.BadStatusLine) as error:
                # A server may close a connection that was kept, or answer and leave while the body is still sent.
                connection.close()
                self._connection = None
                if fresh or attempt:
                    raise judge.Untyped(f"the connection ended without an answer: {error!r}") from error
                continue
            except BaseException:
                connection.close()
                self._connection = None
                raise
            if response.will_close:
                connection.close()
                self._connection = None
            return response.status, response.headers.get("content-type", ""), body
        raise AssertionError

    def _write(self, connection: http.client.HTTPConnection, request: Request) -> None:
        connection.putrequest(request.method, request.path.encode("ascii", "replace").decode())
        named = {name for name, _ in request.headers}
        if "content-type" not in named:
            connection.putheader("content-type", "application/json")
        for name, value in request.headers:
            connection.putheader(name, value)
        if request.pieces:
            connection.putheader("transfer-encoding", "chunked")
            connection.endheaders()
            step = max(request.pieces, len(request.body) // 50)
            for start in range(0, len(request.body), step):
                piece = request.body[start : start + step]
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
        else:
            connection.putheader("content-length", str(len(request.body)))
            connection.endheaders(request.body)


def run(client: Client, request: Request) -> str:
    """Sends it and judges the answer."""
    status, kind, body = client.send(request)
    if request.method in ("GET", "HEAD") and request.path in ("/ready", "/health", "/metrics"):
        return str(status)
    return judge.http(request.path, status, kind, body, head=request.method == "HEAD")


__all__ = ["BASES", "Client", "Raw", "Request", "requests", "run"]
