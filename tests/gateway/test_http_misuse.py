"""What fuzzing the HTTP port found: each once more, by hand."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from typing import Any

import pytest

from orchestrator.gateway import http_protocol
from orchestrator.gateway.routes import MODEL_ROUTES, OWN_ROUTES
from tests.gateway.heard import listen
from tests.gateway.support import Stack
from tests.gateway.test_http_edge import CHAT, JSON, post, raw

BODY = b'{"model":"together","prompt":"a","max_tokens":1}'


class TestTyped:
    async def test_what_is_no_http_is_told_so_in_the_usual_shape(self, stack: Stack) -> None:
        status, headers, body = await raw(stack, b"\x16\x03\x01\x02\x00\x01\x00")
        assert (status, headers["connection"]) == (400, "close")
        assert json.loads(body)["error"]["code"] == "invalid_request"

    @pytest.mark.parametrize("number", [b"9" * 5000, b'"x"', b"-1"])
    async def test_refusals_of_vllms_application_have_our_codes(self, stack: Stack, number: bytes) -> None:
        body = b'{"model":"together","prompt":"a","max_tokens":' + number + b"}"
        response = await stack.http.post("/v1/completions", content=body, headers=JSON)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "invalid_request")
        assert error["type"] == "invalid_request_error"
        assert error["message"]

    async def test_a_type_that_vllm_trips_over_is_the_clients_mistake(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = listen(monkeypatch)
        body = {"model": "apart", "messages": [[]], "stream_options": 1, "tools": [1], "tool_choice": {"type": 1}}
        for messages in ([{"role": []}], [{"role": "assistant", "tool_calls": 3, "content": None}], 5, [[1]]):
            response = await stack.http.post("/v1/chat/completions", json={**body, "messages": messages})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
        refused = {"role": "assistant", "type": "message", "id": "m", "status": "completed"}
        given = [{**refused, "content": content} for content in ([{"type": "refusal", "refusal": "no"}], [])]
        given += [
            {"role": "user", "type": "additional_tools", "content": [1]},
            {"role": "developer", "tools": [], "content": [[]], "type": "additional_tools"},
        ]
        for each in given:
            asked = {"model": "apart", "input": [each]}
            response = await stack.http.post("/v1/responses", json=asked)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
        assert "http_failed" not in said.getvalue()

    @pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("y")])
    async def test_what_breaks_once_the_body_was_read_is_a_defect_inside_and_in_the_log(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        async def breaks(*args: object) -> None:
            raise error

        said = listen(monkeypatch)
        monkeypatch.setattr(
            stack.gateway.front("together").state.openai_serving_completion, "create_completion", breaks
        )
        response = await stack.http.post("/v1/completions", content=BODY, headers=JSON)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
        assert "http_failed" in said.getvalue()

    @pytest.mark.parametrize(
        ("path", "wrong"),
        [
            ("/v1/chat/completions", {"messages": [1] * 20_000}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [1] * 20_000}]}),
            ("/v1/chat/completions", {"messages": CHAT["messages"], "tools": [1] * 20_000}),
            ("/v1/completions", {"prompt": [None] * 20_000}),
            ("/v1/responses", {"input": [1] * 20_000}),
            ("/v1/messages", {"messages": [1] * 20_000, "max_tokens": 1}),
            ("/tokenize", {"messages": [1] * 20_000}),
        ],
        ids=lambda given: given if isinstance(given, str) else next(iter(given)),
    )
    async def test_of_many_wrong_items_one_is_told(self, stack: Stack, path: str, wrong: dict[str, Any]) -> None:
        """To tell all took seconds, in which nobody was served."""
        response = await stack.http.post(path, json={"model": "apart", **wrong})
        message = response.json()["error"]["message"]
        assert response.status_code == 400
        told = re.match(r"(\d+) validation error", message)
        assert told is None or int(told[1]) < 200

    async def test_a_beam_search_of_nothing_is_the_clients_mistake(self, stack: Stack) -> None:
        asked = {"model": "together", "prompt": "a", "use_beam_search": True, "truncate_prompt_tokens": 0}
        for more in ({"max_tokens": 0}, {"max_tokens": 2}):
            response = await stack.http.post("/v1/completions", json={**asked, **more})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
        whole = {**asked, "truncate_prompt_tokens": None, "max_tokens": 2, "n": 2}
        assert (await stack.http.post("/v1/completions", json=whole)).status_code == 200

    async def test_an_anthropic_clients_mistake_is_no_error_of_the_gateways(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = listen(monkeypatch)
        monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)  # as in a gateway's process
        tool = {"tool_choice": {"type": "tool", "name": "there is none"}, "tools": [{"name": "f", "input_schema": {}}]}
        for asked in (tool, {"messages": []}):
            body = {"model": "apart", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}], **asked}
            for path in ("/v1/messages", "/v1/messages/count_tokens"):
                response = await stack.http.post(path, json=body)
                assert response.json()["error"]["type"] == "invalid_request_error"
        assert " error " not in said.getvalue()

    async def test_headers_without_end_are_answered_before_their_sender_is_done(self, stack: Stack) -> None:
        """A client library writes it all before it reads: closing at once would reset it."""
        host, port = stack.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(200):
            writer.write(b"X-A: " + b"a" * 10_000 + b"\r\n")
            await writer.drain()
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n")).split()[1] == b"400"
        writer.close()


class TestHalfClosed:
    @pytest.mark.parametrize("more", [b"", b"FROB /\r\n\r\n", b"\x00\x01"])
    async def test_a_client_that_leaves_in_the_middle_is_no_error(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch, more: bytes
    ) -> None:
        said = listen(monkeypatch)
        host, port = stack.url.removeprefix("http://").split(":")
        whole = post(content_length=len(BODY), expect="100-continue") + BODY
        for _ in range(20):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(whole + more)
            writer.write_eof()
            async with asyncio.timeout(5):
                await reader.read()
            writer.close()
        await stack.quiet()
        assert "http_failed" not in said.getvalue()
        assert "ASGI" not in said.getvalue()

    async def test_what_was_pipelined_ends_with_its_connection(self, stack: Stack) -> None:
        """The one that runs is not the newest that came: it has to end all the same."""
        long = json.dumps({"model": "together", "prompt": "a", "max_tokens": 400}).encode()
        host, port = stack.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write((post(content_length=len(long)) + long) * 3)
        await writer.drain()
        async with asyncio.timeout(5):
            while not stack.gateway.driver._flights:
                await stack.gateway.status_changed(0.01)
        writer.transport.abort()
        assert await stack.gateway.driver.idle(0.3), "a request went on though its client was gone"


async def test_a_stream_that_nobody_reads_is_cut(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel, which is told of it on the listening socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(http_protocol, "UNREAD_SECONDS", 0.5)
    http_protocol.bound_unread(listener)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(listener.getsockname())
    accepted, _ = listener.accept()
    loop = asyncio.get_running_loop()
    accepted.setblocking(False)
    with pytest.raises(OSError, match="timed out"):
        await asyncio.wait_for(loop.sock_sendall(accepted, b"x" * (64 << 20)), 20)
    for each in (reader, accepted, listener):
        each.close()


class TestDocument:
    async def test_it_lists_what_is_reachable_and_nothing_else(self, stack: Stack) -> None:
        document: dict[str, Any] = (await stack.http.get("/openapi.json")).json()
        served = set().union(*(front.paths for front in stack.gateway.fronts()))
        assert set(document["paths"]) == {*OWN_ROUTES, "/v1/models/{name}", *(MODEL_ROUTES.keys() & served)}
        text = json.dumps(document)
        for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
            assert name in document["components"]["schemas"]

    async def test_errors_are_as_it_says(self, stack: Stack) -> None:
        document = (await stack.http.get("/openapi.json")).json()
        answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
        wrong = await stack.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": "x"})
        assert str(wrong.status_code) in answers
        schema = document["components"]["schemas"]["Error"]["properties"]["error"]
        assert set(schema["required"]) == set(wrong.json()["error"])
