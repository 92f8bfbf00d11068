"""What stands between the server and vLLM's application: when an answer may begin, and what goes in its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.core.errors import ClusterFull, WorkerLost
from orchestrator.core.types import RequestReport
from orchestrator.gateway.context import RequestContext
from orchestrator.gateway.http_body import Message
from orchestrator.gateway.http_errors import inside
from orchestrator.gateway.http_exchange import Answer, Exchange

FULL = ClusterFull("all is full", retry_after=6.2)


class Client:
    """One exchange, and what its client has received so far."""

    def __init__(self, path: str = "/v1/chat/completions") -> None:
        self.received: list[Message] = []
        self.context = RequestContext("mine")
        self.exchange = Exchange(path, self.context, self._nothing, Answer(self._receive))

    async def _receive(self, message: Message) -> None:
        self.received.append(message)

    async def _nothing(self) -> Message:
        raise AssertionError("nothing more comes from this client")

    async def start(self, status: int = 200, content_type: str = "text/event-stream") -> None:
        headers = [(b"content-type", content_type.encode()), (b"access-control-allow-origin", b"*")]
        await self.exchange.send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes, more: bool = True) -> None:
        await self.exchange.send({"type": "http.response.body", "body": body, "more_body": more})

    @property
    def status(self) -> int | None:
        return self.received[0]["status"] if self.received else None

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.received[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.received[1:])

    @property
    def ended(self) -> bool:
        return bool(self.received) and not self.received[-1].get("more_body", True)


@pytest.fixture
def client() -> Client:
    return Client()


async def test_a_stream_begins_when_a_worker_has_the_request(client: Client) -> None:
    await client.start()
    await client.piece(b"data: created\n\n")
    assert client.received == []
    client.context.placed = True
    await client.piece(b"data: a\n\n")
    assert (client.status, client.body) == (200, b"data: created\n\ndata: a\n\n")
    await client.piece(b"data: b\n\n", more=False)
    assert client.body.endswith(b"data: b\n\n")
    assert client.ended


async def test_a_refusal_takes_the_place_of_a_stream_that_has_not_begun(client: Client) -> None:
    await client.start()
    await client.piece(b"data: created\n\n")
    client.context.error = FULL
    await client.piece(b"data: something of vLLM's\n\n")
    await client.piece(b"data: [DONE]\n\n", more=False)
    assert client.status == 503
    assert client.headers[b"retry-after"] == b"7"  # never earlier than it is worth it
    assert client.headers[b"x-request-id"] == b"mine"
    assert client.headers[b"content-type"] == b"application/json"
    assert client.headers[b"access-control-allow-origin"] == b"*"  # or a browser would not show it to its page
    assert len(client.headers) == len(client.received[0]["headers"])
    assert json.loads(client.body)["error"]["code"] == "cluster_full"
    assert len(client.received) == 2


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            500,
            {
                "message": str(inside()),
                "type": "server_error",
                "code": "internal",
            },
        ),
        (400, {"message": "list index out of range", "type": "invalid_request_error", "code": "invalid_request"}),
    ],
)
async def test_an_error_in_a_stream_has_our_shape_and_ends_it(client: Client, code: int, told: dict[str, str]) -> None:
    client.context.placed = True
    await client.start()
    await client.piece(b"data: a\n\n")
    error = {"message": "list index out of range", "type": "InternalServerError", "param": None, "code": code}
    await client.piece(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    await client.piece(b"data: [DONE]\n\n", more=False)
    first, event, data = client.body.decode().split("\n\n")[0:1] + client.body.decode().split("\n\n")[1].split("\n")
    assert (first, event) == ("data: a", "event: error")
    assert json.loads(data.removeprefix("data: "))["error"] == {**told, "param": None}
    assert client.body.decode().count("data: ") == 2
    assert client.ended


async def test_a_stream_that_begins_with_an_error_is_a_plain_answer(client: Client) -> None:
    client.context.placed = True
    await client.start()
    await client.piece(b'data: {"error": {"message": "x", "type": "InternalServerError", "code": 500}}\n\n')
    assert (client.status, client.ended) == (500, True)
    assert json.loads(client.body)["error"]["code"] == "internal"


async def test_whoever_asked_for_signs_of_life_gets_them_while_waiting(client: Client) -> None:
    await client.start()
    await client.piece(b": keep-alive\n\n")
    assert (client.status, client.body) == (200, b": keep-alive\n\n")
    client.context.error = FULL
    await client.piece(b"data: something of vLLM's\n\n", more=False)
    event, data = client.body.decode().split("\n\n")[1].split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "cluster_full"
    assert client.ended


async def test_a_stream_that_says_nothing_ends(client: Client) -> None:
    await client.start()
    await client.piece(b"", more=False)
    assert (client.status, client.ended) == (200, True)


@pytest.mark.parametrize(("path", "kind"), [("/v1/messages", "overloaded_error"), ("/v1/completions", "server_error")])
async def test_a_plain_answer_gets_the_errors_own_status_and_delay(path: str, kind: str) -> None:
    client = Client(path)
    client.context.error = FULL
    client.context.reports.append(RequestReport("r", "m", "rejected"))
    await client.start(503, "application/json")
    await client.piece(b'{"error": {"message": "?", "code": 503}}', more=False)
    assert client.headers[b"retry-after"] == b"7"
    assert b"x-segue-decode" not in client.headers  # no worker had it
    assert json.loads(client.body)["error"]["type"] == kind


async def test_an_answer_that_is_good_stays(client: Client) -> None:
    """One of several prompts may have failed where vLLM has an answer all the same."""
    client.context.error = FULL
    await client.start(200, "application/json")
    await client.piece(b"{}", more=False)
    assert (client.status, client.body) == (200, b"{}")


@pytest.mark.parametrize("began", [False, True])
async def test_an_application_that_breaks_leaves_no_client_in_the_dark(client: Client, began: bool) -> None:
    await client.start()
    if began:
        client.context.placed = True
        await client.piece(b"data: a\n\n")
    lost: Any = WorkerLost("gone", retry_after=1.0)
    await client.exchange.fail(lost)
    assert client.status == (200 if began else 503)
    assert b"worker_lost" in client.body
    assert client.ended
