"""What clients see of a cluster that has no room: who waits, who goes first, who is told to come back, and how."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anthropic
import grpc
import grpc.aio
import httpx
import openai
import pytest
import pytest_asyncio

from orchestrator.core import pace
from orchestrator.core.holdings import TurnReason
from orchestrator.core.spec import AdmissionSpec, Role, TenantSpec
from orchestrator.gateway.cluster_core import ClusterCore, EngineCoreRequest
from orchestrator.gateway.context import CURRENT, RequestContext
from orchestrator.proto import inference_pb2 as pb
from orchestrator.proto import inference_pb2_grpc
from tests.gateway.support import Stack, cluster, model, running
from tests.rpc.client import details, error_info

TURNS = {"model": "m", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 2}
TEXT = {"model": "m", "prompt": "Hello there", "max_tokens": 2}
ASKED = {"model": "m", "input": "Hello there", "max_output_tokens": 2}
ROUTES = {
    "/v1/chat/completions": TURNS,
    "/v1/completions": TEXT,
    "/v1/responses": ASKED,
    "/v1/messages": TURNS,
}
LIMITS = AdmissionSpec(
    max_queued_requests=4,
    tenants={
        "small": TenantSpec(max_queued_requests=1),
        "large": TenantSpec(max_queued_tokens=3),
        "gold": TenantSpec(),
    },
)


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Stack]:
    spec = cluster(model("m", "tiny:llama", Role.SERVE), admission=LIMITS)
    async with running(spec, max_num_seqs=1, step_seconds=0.02) as stack:
        yield stack


@pytest_asyncio.fixture
async def stack(shared: Stack) -> AsyncIterator[Stack]:
    yield shared
    await shared.quiet()


def queue(stack: Stack) -> Any:
    return stack.gateway.driver._brain.admission


async def until(stack: Stack, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await stack.gateway.status_changed(0.005)


async def until_queued(stack: Stack, count: int) -> None:
    await until(stack, lambda: len(queue(stack)) == count)


@asynccontextmanager
async def occupied(stack: Stack) -> AsyncIterator[None]:
    """Within it, the one worker has as many requests as it takes, and they last."""
    endless = {**TEXT, "max_tokens": 500, "ignore_eos": True}
    seated = [asyncio.create_task(stack.http.post("/v1/completions", json=endless)) for _ in range(2)]
    try:
        await until(stack, lambda: stack.gateway.driver._brain.live == len(seated))
        assert not len(queue(stack))
        yield
    finally:
        for task in seated:
            task.cancel()
        await asyncio.gather(*seated, return_exceptions=True)


@contextmanager
def placements(stack: Stack) -> Iterator[list[str]]:
    """The internal ids of those that waited, as they are sent to the worker. They have a client's own id in them."""
    placed: list[str] = []
    admitted = queue(stack).admitted

    def note(request_id: str) -> None:
        placed.append(request_id)
        admitted(request_id)

    queue(stack).admitted = note
    try:
        yield placed
    finally:
        del queue(stack).admitted


def names(placed: list[str], known: Iterable[str]) -> list[str]:
    return [next(name for name in known if name in request_id) for request_id in placed]


class Crowd:
    """Requests that wait, each under a name of its own."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.answered: list[str] = []
        self.tasks: list[asyncio.Task[httpx.Response]] = []

    async def joins(self, name: str, tenant: str = "", path: str = "/v1/completions", **over: Any) -> None:
        """Returns once it waits, or was answered at once."""
        before = len(queue(self._stack)), len(self.answered)
        headers = {"x-request-id": name, **({"x-segue-tenant": tenant} if tenant else {}), **over.pop("headers", {})}
        self.tasks.append(asyncio.create_task(self._ask(name, path, {**ROUTES[path], **over}, headers)))
        await until(self._stack, lambda: (len(queue(self._stack)), len(self.answered)) != before)

    async def _ask(self, name: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
        response = await self._stack.http.post(path, json=body, headers=headers)
        self.answered.append(name)
        return response

    async def all(self) -> list[httpx.Response]:
        return await asyncio.wait_for(asyncio.gather(*self.tasks), 20)


async def full(stack: Stack, tenant: str = "flood") -> Crowd:
    crowd = Crowd(stack)
    for i in range(LIMITS.max_queued_requests):
        await crowd.joins(f"{tenant}{i}", tenant)
    assert len(queue(stack)) == LIMITS.max_queued_requests
    return crowd


def told(response: httpx.Response, path: str) -> dict[str, Any]:
    """A refusal's error, in the shape of its API; checks what all refusals have."""
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert (body.get("type") == "error") is (path == "/v1/messages")
    return dict(body["error"])


class TestRefusals:
    @pytest.mark.parametrize("streams", [False, True])
    @pytest.mark.parametrize("path", ROUTES)
    async def test_full_cluster_is_503_before_anything_is_streamed(
        self, stack: Stack, path: str, streams: bool
    ) -> None:
        async with occupied(stack):
            crowd = await full(stack)
            response = await stack.http.post(
                path, json={**ROUTES[path], "stream": streams}, headers={"x-segue-tenant": "flood"}
            )
            assert response.status_code == 503
            error = told(response, path)
            assert "the cluster's limit" in error["message"]
            assert error["type"] == ("overloaded_error" if path == "/v1/messages" else "server_error")
            if path != "/v1/messages":
                assert error["code"] == "cluster_full"
        assert {each.status_code for each in await crowd.all()} == {200}

    @pytest.mark.parametrize("streams", [False, True])
    @pytest.mark.parametrize(
        ("path", "names"),
        [
            ("/v1/chat/completions", {"user": "small"}),
            ("/v1/completions", {"user": "small"}),
            ("/v1/responses", {"safety_identifier": "small"}),
            ("/v1/messages", {"metadata": {"user_id": "small"}}),
        ],
    )
    async def test_tenant_over_its_own_limit_is_429(
        self, stack: Stack, path: str, names: dict[str, Any], streams: bool
    ) -> None:
        async with occupied(stack):
            crowd = Crowd(stack)
            await crowd.joins("first", "small")
            response = await stack.http.post(path, json={**ROUTES[path], **names, "stream": streams})
            assert response.status_code == 429
            error = told(response, path)
            assert "your tenant" in error["message"]
            assert error["type"] == "rate_limit_error"
            await crowd.joins("other", "gold")
        assert {each.status_code for each in await crowd.all()} == {200}

    @pytest.mark.parametrize("streams", [False, True])
    async def test_one_that_waits_gives_way_to_a_tenant_under_its_share(self, stack: Stack, streams: bool) -> None:
        async with occupied(stack):
            crowd = Crowd(stack)
            for i in range(LIMITS.max_queued_requests):
                await crowd.joins(f"flood{i}", "flood", path="/v1/chat/completions", stream=streams)
            await crowd.joins("late", "gold")
            gone = await crowd.tasks[LIMITS.max_queued_requests - 1]
            assert gone.status_code == 429
            assert "more than its share" in told(gone, "/v1/chat/completions")["message"]
        responses = await crowd.all()
        assert [each.status_code for each in responses] == [200, 200, 200, 429, 200]

    async def test_own_requests_over_the_tokens_that_a_tenant_may_have_waiting(self, stack: Stack) -> None:
        async with occupied(stack):
            response = await stack.http.post("/v1/completions", json=TEXT, headers={"x-segue-tenant": "large"})
            assert response.status_code == 429

    @pytest.mark.parametrize("path", ROUTES)
    async def test_after_the_first_token_an_error_comes_in_the_stream(self, stack: Stack, path: str) -> None:
        """Status and headers are out by then; the last event says it in the shape of the API."""
        length = {name: 300 for name in ROUTES[path] if "max" in name}
        body = {**ROUTES[path], **length, "stream": True}
        events = []
        async with asyncio.timeout(10):
            async with stack.http.stream("POST", path, json=body, headers={"x-request-timeout": "0.7"}) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        events.append(json.loads(line.removeprefix("data: ")))
        assert len(events) > 3
        assert "deadline" in events[-1]["error"]["message"]
        if path != "/v1/messages":
            assert events[-1]["error"]["code"] == "deadline_exceeded"

    async def test_refusals_are_counted_by_reason_and_queued_requests_by_known_tenants(self, stack: Stack) -> None:
        async def metric(name: str) -> dict[str, float]:
            lines = [line for line in (await stack.http.get("/metrics")).text.splitlines() if line.startswith(name)]
            return {line.split('"')[-2]: float(line.split()[-1]) for line in lines}

        before = await metric("segue_turned_away_total")
        assert set(before) == set(TurnReason)
        async with occupied(stack):
            crowd = await full(stack)
            await crowd.joins("more", "flood")
            await crowd.joins("gold", "gold")
            assert await metric("segue_queued_requests") == {"gold": 1, "small": 0, "large": 0, "other": 3}
            after = await metric("segue_turned_away_total")
        assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
            "cluster_requests": 1,
            "displaced": 1,
        }
        await crowd.all()


class TestTurns:
    async def test_a_flood_costs_another_tenant_one_turn(self, stack: Stack) -> None:
        with placements(stack) as placed:
            async with occupied(stack):
                crowd = Crowd(stack)
                for i in range(3):
                    await crowd.joins(f"flood{i}", "flood")
                await crowd.joins("late", "gold")
            await crowd.all()
        assert "late" in " ".join(placed[:2])

    async def test_priorities_order_a_tenants_requests_whoever_says_them(self, stack: Stack) -> None:
        with placements(stack) as placed:
            async with occupied(stack):
                crowd = Crowd(stack)
                await crowd.joins("plain")
                await crowd.joins("field", priority=-1)
                await crowd.joins("header", priority=5, headers={"x-segue-priority": "-2"})
                await crowd.joins("in-chat", path="/v1/chat/completions", priority=1)
            assert {each.status_code for each in await crowd.all()} == {200}
        assert names(placed, crowd.answered) == ["header", "field", "plain", "in-chat"]

    async def test_one_that_is_cancelled_while_it_waits_leaves(self, stack: Stack) -> None:
        async with occupied(stack):
            crowd = Crowd(stack)
            await crowd.joins("a")
            crowd.tasks[0].cancel()
            await until_queued(stack, 0)


class TestDeadlines:
    @pytest.mark.parametrize("streams", [False, True])
    async def test_one_that_waits_leaves_by_its_deadline(self, stack: Stack, streams: bool) -> None:
        async with occupied(stack):
            began = time.monotonic()
            response = await stack.http.post(
                "/v1/chat/completions", json={**TURNS, "stream": streams}, headers={"x-request-timeout": "0.3"}
            )
            assert 0.3 <= time.monotonic() - began < 2
            assert response.status_code == 504
            assert response.json()["error"]["code"] == "deadline_exceeded"

    @pytest.mark.parametrize(
        ("header", "value"),
        [
            ("x-request-timeout", "soon"),
            ("x-request-timeout", "0"),
            ("x-request-timeout", "nan"),
            ("x-request-timeout", "1e9"),
            ("x-segue-priority", "high"),
            ("x-segue-priority", "1e3"),
            ("x-segue-priority", str(1 << 31)),
            ("x-segue-tenant", "t" * 129),
            ("x-segue-tenant", "a\u00a0b"),
            ("x-segue-session", "s" * 129),
        ],
    )
    async def test_a_header_that_can_not_be_meant_is_named(self, stack: Stack, header: str, value: str) -> None:
        response = await stack.http.post("/v1/completions", json=TEXT, headers={header: value.encode()})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(f"{header}: ")

    async def test_two_tenants_are_none(self, stack: Stack) -> None:
        headers = [("x-segue-tenant", "a"), ("x-segue-tenant", "b")]
        response = await stack.http.post("/v1/completions", json=TEXT, headers=headers)
        assert response.status_code == 400

    @pytest.mark.parametrize("user", ["x" * 1000, "line\nbreak", "", "   ", 7, None])
    async def test_other_apis_fields_are_no_reason_to_refuse(self, stack: Stack, user: object) -> None:
        """Such clients know nothing of tenants; a user's id of theirs may be anything that vLLM takes."""
        body = json.dumps({**TEXT, "user": user, "metadata": "?", "safety_identifier": 3}).encode()
        response = await stack.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == (400 if user == 7 else 200), response.text


class TestOfficialClients:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pace, "UNKNOWN_RETRY_SECONDS", 1.5)  # over what the clients would wait on their own
        monkeypatch.setattr(pace, "MOST_RETRY_SECONDS", 1.5)

    @staticmethod
    def attempts(client: openai.AsyncOpenAI | anthropic.AsyncAnthropic) -> list[tuple[float, int]]:
        seen: list[tuple[float, int]] = []

        async def note(response: httpx.Response) -> None:
            seen.append((time.monotonic(), response.status_code))

        client._client.event_hooks["response"].append(note)
        return seen

    @pytest.mark.parametrize("tenant", ["small", "flood"])
    async def test_openais_client_comes_back_when_told_and_gets_its_stream(self, stack: Stack, tenant: str) -> None:
        client = openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="-", max_retries=1)
        seen = self.attempts(client)
        async with occupied(stack):
            crowd = await full(stack, tenant) if tenant == "flood" else Crowd(stack)
            if tenant == "small":
                await crowd.joins("first", tenant)
            asked = asyncio.create_task(
                client.chat.completions.create(**TURNS, stream=True, extra_headers={"x-segue-tenant": tenant})
            )
            await until(stack, lambda: bool(seen))
            for task in crowd.tasks:
                task.cancel()
        async with client:
            chunks = [chunk async for chunk in await asyncio.wait_for(asked, 20)]
        assert chunks[-1].choices[0].finish_reason == "length"
        (first, refused), (second, taken) = seen
        assert (refused, taken) == (429 if tenant == "small" else 503, 200)
        assert second - first >= 1.5

    async def test_anthropics_client_comes_back_when_told(self, stack: Stack) -> None:
        client = anthropic.AsyncAnthropic(base_url=stack.url, api_key="-", max_retries=1)
        seen = self.attempts(client)
        async with occupied(stack):
            crowd = await full(stack)
            asked = asyncio.create_task(client.messages.create(**TURNS, extra_headers={"x-segue-tenant": "flood"}))
            await until(stack, lambda: bool(seen))
            for task in crowd.tasks:
                task.cancel()
        async with client:
            assert (await asyncio.wait_for(asked, 20)).stop_reason == "max_tokens"
        assert [status for _, status in seen] == [503, 200]
        assert seen[1][0] - seen[0][0] >= 1.5

    async def test_their_errors_have_the_type_and_the_code(self, stack: Stack) -> None:
        async with (
            occupied(stack),
            openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="-", max_retries=0) as client,
        ):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(**TEXT, stream=True, user="large")
            assert caught.value.code == "overloaded"
            with pytest.raises(openai.InternalServerError) as late:
                await client.completions.create(**TEXT, extra_headers={"x-request-timeout": "0.2"})
            assert late.value.code == "deadline_exceeded"


class TestGrpc:
    @pytest_asyncio.fixture
    async def inference(self, stack: Stack) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
            yield inference_pb2_grpc.InferenceStub(channel)

    @staticmethod
    async def generate(inference: Any, *metadata: tuple[str, str], **over: Any) -> list[pb.GenerateResponse]:
        request = pb.GenerateRequest(model="m", text="Hello there", sampling=pb.SamplingParams(max_tokens=2), **over)
        return [message async for message in inference.Generate(request, metadata=metadata, timeout=20)]

    async def refused(self, inference: Any, *metadata: tuple[str, str], **over: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.generate(inference, *metadata, **over)
        return caught.value

    @pytest.mark.parametrize(
        ("metadata", "fields"), [((), {"tenant": "large"}), ((("x-segue-tenant", "large"),), {"tenant": "gold"})]
    )
    async def test_tenant_over_its_own_limit_is_resource_exhausted(
        self, stack: Stack, inference: Any, metadata: Any, fields: Any
    ) -> None:
        async with occupied(stack):
            error = await self.refused(inference, *metadata, **fields)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(error).reason == "overloaded"
        assert 1 <= details(error)["RetryInfo"].retry_delay.seconds <= 60

    async def test_full_cluster_is_unavailable(self, stack: Stack, inference: Any) -> None:
        async with occupied(stack):
            crowd = await full(stack)
            error = await self.refused(inference, tenant="flood")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error_info(error).reason == "cluster_full"
        assert 1 <= details(error)["RetryInfo"].retry_delay.seconds <= 60
        await crowd.all()

    async def test_priority_orders_by_field_and_by_metadata(self, stack: Stack, inference: Any) -> None:
        metadata = {"metadata": [("x-segue-priority", "-2")]}
        tasks = []
        with placements(stack) as placed:
            async with occupied(stack):
                for name, priority in (("plain", 0), ("field", -1), ("metadata", 5)):
                    asked = self.generate(inference, *metadata.get(name, ()), request_id=name, priority=priority)
                    tasks.append(asyncio.create_task(asked))
                    await until_queued(stack, len(tasks))
            await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert names(placed, ("plain", "field", "metadata")) == ["metadata", "field", "plain"]

    @pytest.mark.parametrize(
        ("metadata", "fields", "where"),
        [
            ((("x-segue-tenant", "t" * 129),), {}, "x-segue-tenant"),
            ((("x-segue-priority", "high"),), {}, "x-segue-priority"),
            ((), {"tenant": "a\nb"}, "tenant"),
            ((), {"session": "s" * 129}, "session"),
        ],
    )
    async def test_what_can_not_be_meant_is_named(self, inference: Any, metadata: Any, fields: Any, where: str) -> None:
        error = await self.refused(inference, *metadata, **fields)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error_info(error).metadata["where"] == where


class Sink:
    """Keeps what reaches the seam."""

    def __init__(self) -> None:
        self.salts: list[str | None] = []

    def submit(self, core: ClusterCore, request: EngineCoreRequest) -> None:
        self.salts.append(request.cache_salt)

    def cancel(self, request_id: str, *, complete: bool) -> None: ...


async def test_isolated_caches_have_a_salt_a_tenant_that_no_other_can_make() -> None:
    sink = Sink()
    core = ClusterCore("m", sink, isolate_caches=True)
    for tenant in ("", "a", "b"):
        for salt in (None, "s", "a", "\na", "a\n"):
            request = EngineCoreRequest("r", [1], None, None, None, 0.0, None, salt, None)
            token = CURRENT.set(RequestContext("r", tenant=tenant))
            await core.add_request_async(request)
            CURRENT.reset(token)
    assert len(set(sink.salts)) == len(sink.salts)


async def test_salts_are_the_clients_own_unless_caches_are_isolated(stack: Stack) -> None:
    sink = Sink()
    await ClusterCore("m", sink).add_request_async(EngineCoreRequest("r", [1], None, None, None, 0.0, None, "s", None))
    assert sink.salts == ["s"]
