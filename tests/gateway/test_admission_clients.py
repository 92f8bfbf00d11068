"""Admission as official clients and gRPC callers meet it; and what of a tenant reaches the engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import grpc
import grpc.aio
import httpx
import openai
import pytest
import pytest_asyncio

from orchestrator.core import pace
from orchestrator.core.spec import AdmissionSpec, Role
from orchestrator.gateway.cluster_core import ClusterCore, EngineCoreRequest
from orchestrator.gateway.context import CURRENT, RequestContext
from orchestrator.proto import inference_pb2 as pb
from orchestrator.proto import inference_pb2_grpc
from tests.gateway.crowd import TEXT, TURNS, Crowd, full, names, occupied, placements, until, until_queued
from tests.gateway.support import Stack, cluster, model, running
from tests.rpc.client import details, error_info


class TestOfficialClients:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pace, "UNKNOWN_RETRY_SECONDS", 1.0)  # over what the clients would wait on their own
        monkeypatch.setattr(pace, "MOST_RETRY_SECONDS", 1.0)

    @staticmethod
    def attempts(client: openai.AsyncOpenAI | anthropic.AsyncAnthropic) -> list[tuple[float, int]]:
        seen: list[tuple[float, int]] = []

        async def note(response: httpx.Response) -> None:
            seen.append((time.monotonic(), response.status_code))

        client._client.event_hooks["response"].append(note)
        return seen

    @pytest.mark.parametrize("tenant", ["small", "flood"])
    async def test_openais_client_comes_back_when_told_and_gets_its_stream(self, narrow: Stack, tenant: str) -> None:
        client = openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="-", max_retries=1)
        seen = self.attempts(client)
        async with occupied(narrow):
            crowd = await full(narrow, tenant) if tenant == "flood" else Crowd(narrow)
            if tenant == "small":
                await crowd.joins("first", tenant)
            asked = asyncio.create_task(
                client.chat.completions.create(**TURNS, stream=True, extra_headers={"x-segue-tenant": tenant})
            )
            await until(narrow, lambda: bool(seen))
            for task in crowd.tasks:
                task.cancel()
        async with client:
            chunks = [chunk async for chunk in await asyncio.wait_for(asked, 20)]
        assert chunks[-1].choices[0].finish_reason == "length"
        (first, refused), (second, taken) = seen
        assert (refused, taken) == (429 if tenant == "small" else 503, 200)
        assert second - first >= 1.0

    async def test_anthropics_client_comes_back_when_told(self, narrow: Stack) -> None:
        client = anthropic.AsyncAnthropic(base_url=narrow.url, api_key="-", max_retries=1)
        seen = self.attempts(client)
        async with occupied(narrow):
            crowd = await full(narrow)
            asked = asyncio.create_task(client.messages.create(**TURNS, extra_headers={"x-segue-tenant": "flood"}))
            await until(narrow, lambda: bool(seen))
            for task in crowd.tasks:
                task.cancel()
        async with client:
            assert (await asyncio.wait_for(asked, 20)).stop_reason == "max_tokens"
        assert [status for _, status in seen] == [503, 200]
        assert seen[1][0] - seen[0][0] >= 1.0

    async def test_their_errors_have_the_type_and_the_code(self, narrow: Stack) -> None:
        async with (
            occupied(narrow),
            openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="-", max_retries=0) as client,
        ):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(**TEXT, stream=True, user="large")
            assert caught.value.code == "overloaded"
            with pytest.raises(openai.InternalServerError) as late:
                await client.completions.create(**TEXT, extra_headers={"x-request-timeout": "0.2"})
            assert late.value.code == "deadline_exceeded"

    async def test_they_raise_what_a_stream_ends_with(self, narrow: Stack) -> None:
        long = {**TURNS, "max_tokens": 300, "stream": True, "extra_headers": {"x-request-timeout": "0.7"}}
        chat = openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="-")
        messages = anthropic.AsyncAnthropic(base_url=narrow.url, api_key="-")
        async with chat, messages:
            for create, error in ((chat.chat.completions, openai.APIError), (messages.messages, anthropic.APIError)):
                with pytest.raises(error, match="deadline"):
                    async for _ in await create.create(**long):
                        pass


class TestGrpc:
    @pytest_asyncio.fixture
    async def inference(self, narrow: Stack) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(narrow.grpc_address) as channel:
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
        self, narrow: Stack, inference: Any, metadata: Any, fields: Any
    ) -> None:
        async with occupied(narrow):
            error = await self.refused(inference, *metadata, **fields)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(error).reason == "overloaded"
        assert 1 <= details(error)["RetryInfo"].retry_delay.seconds <= 60

    async def test_full_cluster_is_unavailable(self, narrow: Stack, inference: Any) -> None:
        async with occupied(narrow):
            crowd = await full(narrow)
            error = await self.refused(inference, tenant="flood")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error_info(error).reason == "cluster_full"
        assert 1 <= details(error)["RetryInfo"].retry_delay.seconds <= 60
        await crowd.all()

    @pytest.mark.source
    async def test_priority_orders_by_field_and_by_metadata(self, narrow: Stack, inference: Any) -> None:
        metadata = {"metadata": [("x-segue-priority", "-2")]}
        tasks = []
        with placements(narrow) as placed:
            async with occupied(narrow):
                for name, priority in (("plain", 0), ("field", -1), ("metadata", 5)):
                    asked = self.generate(inference, *metadata.get(name, ()), request_id=name, priority=priority)
                    tasks.append(asyncio.create_task(asked))
                    await until_queued(narrow, len(tasks))
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


async def test_salts_are_the_clients_own_unless_caches_are_isolated(narrow: Stack) -> None:
    sink = Sink()
    await ClusterCore("m", sink).add_request_async(EngineCoreRequest("r", [1], None, None, None, 0.0, None, "s", None))
    assert sink.salts == ["s"]


@pytest.mark.parametrize("isolated", [True, False])
async def test_what_one_tenant_sent_is_cached_for_another_only_where_caches_are_shared(isolated: bool) -> None:
    spec = cluster(model("m", "tiny:llama", Role.SERVE), admission=AdmissionSpec(isolate_caches=isolated))
    body = {"model": "m", "prompt": [50 + i for i in range(64)], "max_tokens": 1}
    async with running(spec) as stack:

        async def cached(**headers: str) -> int:
            usage = (await stack.http.post("/v1/completions", json=body, headers=headers)).json()["usage"]
            return int((usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0)

        seen = [await cached(**who) for who in ({"x-segue-tenant": "a"}, {"x-segue-tenant": "b"}, {})]
        again = await cached(**{"x-segue-tenant": "a"})
        await stack.quiet()
    assert again > 0
    assert seen == ([0, 0, 0] if isolated else [0, again, again])
