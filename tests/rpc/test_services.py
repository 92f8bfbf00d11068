"""Cluster, health, reflection, embeddings and the list of models."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.proto import cluster_pb2
from orchestrator.proto import inference_pb2 as pb
from tests.rpc.client import generate_by_reflection
from tests.rpc.fake import Edge, report, step

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class TestCluster:
    async def test_status_is_the_gateways_view(self, edge: Edge) -> None:
        assert await edge.cluster.Status(cluster_pb2.StatusRequest()) == edge.gateway.current

    async def test_a_watch_begins_with_now_and_tells_each_change_and_nothing_else(self, edge: Edge) -> None:
        watch = edge.cluster.Watch(cluster_pb2.WatchRequest(min_interval_ms=20))
        assert (await watch.read()).ready
        edge.gateway.change()  # something changed that the status does not show
        next_one = asyncio.create_task(watch.read())
        await asyncio.sleep(0.2)
        assert not next_one.done()
        edge.gateway.change(ready=False)
        assert not (await asyncio.wait_for(next_one, 10)).ready
        watch.cancel()

    async def test_changes_faster_than_the_interval_come_together_and_the_last_is_not_lost(self, edge: Edge) -> None:
        began = time.monotonic()
        watch = edge.cluster.Watch(cluster_pb2.WatchRequest(min_interval_ms=300))
        await watch.read()
        for number in range(50):
            edge.gateway.change(name=f"v{number}")
            await asyncio.sleep(0.001)
        seen = [await asyncio.wait_for(watch.read(), 10)]
        assert time.monotonic() - began >= 0.3
        while seen[-1].name != "v49":
            seen.append(await asyncio.wait_for(watch.read(), 10))
        assert len(seen) <= (time.monotonic() - began) / 0.3
        watch.cancel()

    async def test_many_changes_that_show_nothing_do_not_keep_the_gateway_looking(self, edge: Edge) -> None:
        watch = edge.cluster.Watch(cluster_pb2.WatchRequest(min_interval_ms=200))
        await watch.read()
        before, began = edge.gateway.looks, time.monotonic()
        for _ in range(500):
            edge.gateway.change()
            await asyncio.sleep(0.001)
        assert edge.gateway.looks - before <= 2 + 2 * (time.monotonic() - began) / 0.2
        watch.cancel()

    async def test_a_client_that_leaves_ends_its_watch(self, edge: Edge) -> None:
        watch = edge.cluster.Watch(cluster_pb2.WatchRequest(min_interval_ms=20))
        await watch.read()
        watch.cancel()
        await asyncio.sleep(0.1)
        before = edge.gateway.looks
        edge.gateway.change(name="later")
        await asyncio.sleep(0.1)
        assert edge.gateway.looks == before


class TestHealth:
    @pytest.mark.parametrize("service", ["", "segue.v1.Inference", "segue.v1.Cluster"])
    async def test_a_ready_gateway_serves_and_a_draining_one_does_not(self, edge: Edge, service: str) -> None:
        assert await self._check(edge, service) == SERVING
        edge.gateway.draining = True
        assert await self._check(edge, service) == NOT_SERVING

    async def test_a_model_that_waits_for_workers_is_not_served_but_can_be_watched(self, edge: Edge) -> None:
        edge.gateway.the_front.is_ready = False
        edge.gateway.change(ready=False)
        assert await self._check(edge, "") == NOT_SERVING
        assert await self._check(edge, "segue.v1.Inference") == NOT_SERVING
        assert await self._check(edge, "segue.v1.Cluster") == SERVING

    async def test_a_watch_tells_when_it_changes(self, edge: Edge) -> None:
        watch = self._stub(edge).Watch(health_pb2.HealthCheckRequest(service="segue.v1.Inference"))
        assert (await watch.read()).status == SERVING
        edge.gateway.the_front.is_ready = False
        edge.gateway.change()
        assert (await asyncio.wait_for(watch.read(), 10)).status == NOT_SERVING
        edge.gateway.the_front.is_ready = True
        assert (await asyncio.wait_for(watch.read(), 10)).status == SERVING  # though nobody announced it
        watch.cancel()

    async def test_a_service_that_is_not_here(self, edge: Edge) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await self._check(edge, "segue.internal.v1.Worker")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watch = self._stub(edge).Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await watch.read()).status == UNKNOWN
        watch.cancel()

    @staticmethod
    def _stub(edge: Edge) -> Any:
        return health_pb2_grpc.HealthStub(edge.channel)

    async def _check(self, edge: Edge, service: str) -> Any:
        return (await self._stub(edge).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status


class TestReflection:
    async def test_a_client_made_from_reflection_alone_generates(self, edge: Edge) -> None:
        edge.llm.script = [step("Hel", [1]), report(), step("lo", [2], "stop", stop="!")]
        messages, services = await asyncio.to_thread(generate_by_reflection, edge.address)

        assert services == {
            "segue.v1.Inference",
            "segue.v1.Cluster",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        assert "".join(s.text for m in messages for s in m.sequences) == "Hello"
        assert messages[-1].placement.decode_worker == "d0"
        (call,) = edge.llm.calls
        assert (call.params.temperature, call.params.stop) == (0.5, ["!"])


class TestModels:
    async def test_what_is_served_and_what_it_can_do(self, edge: Edge) -> None:
        edge.gateway.the_front.is_ready = False
        assert (await edge.inference.ListModels(pb.ListModelsRequest())).models == [
            pb.Model(name="m", tasks=["generate"], max_model_len=100, disaggregated=True, ready=False)
        ]


class TestEmbed:
    @pytest.fixture
    def embedder(self, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> Edge:
        async def render(front: Any, texts: list[str]) -> list[Any]:
            return [{"prompt": text, "prompt_token_ids": [0] * len(text)} for text in texts]

        monkeypatch.setattr("orchestrator.gateway.rpc_embed._render", render)
        edge.gateway.the_front.tasks = ("embed",)
        return edge

    async def test_one_vector_a_text_in_their_order(self, embedder: Edge) -> None:
        response = await embedder.inference.Embed(pb.EmbedRequest(texts=["abc", "a"], dimensions=2), timeout=10)

        assert [list(each.values) for each in response.embeddings] == [[3.0, 0.5], [1.0, 0.5]]
        assert response.usage.prompt_tokens == 4
        assert {call.params.task for call in embedder.llm.calls} == {"embed"}
        assert {call.params.dimensions for call in embedder.llm.calls} == {2}
        assert len({call.request_id for call in embedder.llm.calls}) == 2

    async def test_one_text_that_fails_fails_the_call_with_its_reason(self, embedder: Edge) -> None:
        from vllm.exceptions import VLLMValidationError

        embedder.llm.vectors = lambda text: VLLMValidationError("the text is too long")
        with pytest.raises(grpc.aio.AioRpcError, match="too long") as failed:
            await embedder.inference.Embed(pb.EmbedRequest(texts=["abc", "a"]), timeout=10)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    @pytest.mark.parametrize("texts", [[], ["x"] * 3000], ids=["none", "too many"])
    async def test_how_many_texts_there_may_be(self, embedder: Edge, texts: list[str]) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="texts") as refused:
            await embedder.inference.Embed(pb.EmbedRequest(texts=texts), timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_a_model_without_embeddings_says_so(self, edge: Edge) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="no embeddings") as refused:
            await edge.inference.Embed(pb.EmbedRequest(texts=["x"]), timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_that_ends_as_it_is_answered_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """gRPC's own words for it; what else it fails to send is one."""
    grpcs = logging.getLogger("grpc._cython.cygrpc")
    grpcs.error("raised in core", exc_info=grpc.aio.InternalError('Failed "execute_batch": (...)'))
    grpcs.error("raised in core", exc_info=grpc.aio.InternalError("Failed grpc_call_start_batch: 8"))
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "Failed grpc_call_start_batch: 8"
    ]
