"""HTTP from clients that mean no good, or stop half-way: byte by byte where a client library would be too polite."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from orchestrator.gateway import http, http_body, http_protocol
from orchestrator.gateway.routes import MODEL_PREFIX, MODEL_ROUTES, OWN_ROUTES
from tests.gateway.heard import listen
from tests.gateway.support import Stack

CHAT = {"model": "apart", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 4}
JSON = {"content-type": "application/json"}


async def raw(stack: Stack, *pieces: bytes, seconds: float = 10.0) -> tuple[int, dict[str, str], bytes]:
    """Sends bytes as they are and reads up to the connection's end: status, headers, body."""
    host, port = stack.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
        async with asyncio.timeout(seconds):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            body = await reader.read()
    finally:
        writer.close()
    status, *lines = head.rstrip().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def post(path: str = "/v1/completions", **headers: object) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{lines}\r\n".encode()


class TestBounds:
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
    async def test_deep_nesting_is_the_clients_mistake(self, stack: Stack, path: str) -> None:
        deep = b'{"a":' * 3000 + b"1" + b"}" * 3000
        body = b'{"model":"apart","messages":[],"max_tokens":1,"chat_template_kwargs":' + deep + b"}"
        response = await stack.http.post(path, content=body, headers=JSON)
        assert response.status_code == 400
        assert "nested" in response.json()["error"]["message"]
        assert (response.json().get("type") == "error") is (path == "/v1/messages")

    async def test_headers_without_end_are_refused(self, stack: Stack) -> None:
        status, headers, body = await raw(stack, b"GET /v1/models HTTP/1.1\r\nX-A: ", b"a" * (80 << 10))
        assert status == 431
        assert headers["connection"] == "close"
        assert json.loads(body)["error"]["code"] == "headers_too_large"

    async def test_many_headers_are_bounded_and_a_fair_number_is_not(self, stack: Stack) -> None:
        many = "".join(f"X-{index}: {'v' * 100}\r\n" for index in range(1000))
        status, _, _ = await raw(stack, f"GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n".encode())
        assert status == 431
        fair = {f"x-{index}": "v" * 100 for index in range(300)}
        for _ in range(3):  # on one connection: the count begins anew with each request
            body = json.dumps({"model": "apart", "prompt": "a b", "max_tokens": 1, "user": "u" * 200_000})
            assert (await stack.http.post("/v1/completions", content=body, headers={**fair, **JSON})).status_code == 200

    async def test_a_head_that_never_ends_is_given_up(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
        with pytest.raises(asyncio.IncompleteReadError):
            await raw(stack, b"GET /health HTTP/1.1\r\nHost: x\r\n", seconds=5.0)

    async def test_an_announced_body_that_is_too_large_is_not_waited_for(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http, "_DISCARD_SECONDS", 0.1)
        status, headers, body = await raw(stack, post(content_length=99_999_999_999), b"{")
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(body)["error"]["code"] == "request_too_large"

    async def test_a_chunked_body_ends_where_the_limit_is(self, stack: Stack) -> None:
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        status, _, _ = await raw(stack, post(transfer_encoding="chunked"), *[chunk] * 17)
        assert status == 413

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
    async def test_a_body_that_never_ends_is_given_up(
        self, stack: Stack, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http_body, "PIECE_SECONDS", 0.2)
        monkeypatch.setattr(http, "_DISCARD_SECONDS", 0.1)
        status, headers, body = await raw(stack, post(path, content_length=50), b"{")
        assert (status, headers["connection"]) == (408, "close")
        assert (json.loads(body).get("type") == "error") is (path == "/v1/messages")

    async def test_text_that_is_no_utf8(self, stack: Stack) -> None:
        body = b'{"model":"apart","prompt":"\xff\xfe","max_tokens":1}'
        response = await stack.http.post("/v1/completions", content=body, headers=JSON)
        assert response.status_code == 400
        assert "UTF-8" in response.json()["error"]["message"]

    @pytest.mark.parametrize("given", ["x" * 129, "tab\there", "caf\xe9", ""])
    async def test_an_unfit_request_id_is_replaced(self, stack: Stack, given: str) -> None:
        headers = {"x-request-id": given.encode("latin-1")}
        answer = await stack.http.post("/v1/chat/completions", json=CHAT, headers=headers)  # type: ignore[arg-type]
        assert len(answer.headers["x-request-id"]) == 32
        assert answer.headers["x-request-id"].isalnum()
        fit = await stack.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "x" * 128})
        assert fit.headers["x-request-id"] == "x" * 128


class TestShapes:
    @pytest.mark.parametrize(
        "over",
        [
            {"max_tokens": "x"},
            {"messages": 5},
            {"messages": [{"role": "user", "content": "hi " * 900}]},
            {"stop_sequences": [""]},
        ],
    )
    async def test_messages_answers_mistakes_in_anthropics_shape(self, stack: Stack, over: dict[str, Any]) -> None:
        response = await stack.http.post("/v1/messages", json={**CHAT, **over})
        assert response.status_code == 400
        answer = response.json()
        assert answer["type"] == "error"
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["message"]
        assert set(answer) == {"type", "error"}

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [("GET", "/v1/chat/completions", "POST"), ("PUT", "/health", "GET, HEAD"), ("DELETE", "/v1/messages", "POST")],
    )
    async def test_wrong_method_says_which_is_right(self, stack: Stack, method: str, path: str, allow: str) -> None:
        response = await stack.http.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allow)
        assert response.json()["error"]["type"] == "invalid_request_error"

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
    async def test_what_nobody_foresaw_is_a_500_that_tells_nothing(
        self, stack: Stack, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_: str) -> None:
            raise KeyError("xylophone")

        said = listen(monkeypatch)
        monkeypatch.setattr(stack.gateway, "front", broken)
        response = await stack.http.post(path, json=CHAT)
        assert response.status_code == 500
        assert (response.json().get("type") == "error") is (path == "/v1/messages")
        assert "xylophone" not in response.text + said.getvalue()
        assert 'http_failed error="KeyError"' in said.getvalue()

    async def test_an_application_that_fails_after_its_answer_began_ends_the_connection(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise KeyError("xylophone")

        said = listen(monkeypatch)
        monkeypatch.setattr(stack.gateway.front("apart"), "app", broken)
        status, _, body = await raw(stack, post(content_length=17), b'{"model":"apart"}')
        assert (status, body) == (200, b"half")
        assert "http_failed request_id=" in said.getvalue()
        assert "xylophone" not in said.getvalue()


class TestAllowList:
    async def test_nothing_else_of_vllms_application_is_reachable(self, stack: Stack) -> None:
        """Every route that vLLM has now or after an upgrade, but those that are meant for clients."""
        asked = 0
        having = {path: front.name for front in stack.gateway.fronts() for path in routes(front.app)}
        for path in having.keys() - set(MODEL_ROUTES) - set(OWN_ROUTES):
            bare = path.replace("{", "").replace("}", "")
            for method in ("GET", "POST", "PUT", "DELETE"):
                response = await stack.http.request(method, bare, json={"model": having[path]})
                own = bare.startswith(MODEL_PREFIX)
                assert response.status_code in ((404, 405) if own else (404,)), f"{method} {bare}"
                asked += 1
        assert asked > 40, "the application has hardly any routes: look for them elsewhere"

    async def test_every_route_that_is_let_through_exists(self, stack: Stack) -> None:
        served = set().union(*(routes(front.app) for front in stack.gateway.fronts()))
        assert set(MODEL_ROUTES) - {"/v1/embeddings"} <= served  # no model here embeds


def routes(app: Any) -> set[str]:
    return {path for route in app.routes if (path := getattr(route, "path", ""))}
