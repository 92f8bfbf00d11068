"""What logs, spans and metrics say of a request, and what they keep to themselves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc.aio
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from orchestrator.proto import inference_pb2, inference_pb2_grpc
from orchestrator.telemetry import tracing
from tests.gateway.heard import listen
from tests.gateway.support import Stack

CHAT = {"model": "apart", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 4}
CALL = {"type": "function_call", "call_id": "a"}
TOOL = {"name": "a", "input_schema": {"type": "object"}}


class TestCounts:
    async def test_refusals_are_counted_by_code(self, stack: Stack) -> None:
        def count(code: str) -> float:
            labels = {"gateway": "gw-0", "edge": "http", "code": code}
            return stack.gateway.metrics.registry.get_sample_value("segue_refused_total", labels) or 0.0

        codes = ("model_not_found", "route_not_found", "invalid_request", "request_too_large", "method_not_allowed")
        before = {code: count(code) for code in codes}
        await stack.http.post("/v1/completions", json={"model": "nope"})
        await stack.http.post("/nope")
        await stack.http.post("/v1/completions", json={"model": "apart", "prompt": "x", "max_tokens": -1})
        await stack.http.post("/v1/completions", content=b" " * ((1 << 20) + 1))
        await stack.http.get("/v1/completions")
        await stack.http.post("/v1/chat/completions", json=CHAT)
        assert {code: count(code) - before[code] for code in codes} == dict.fromkeys(codes, 1.0)

    async def test_refused_calls_are_counted_too(self, stack: Stack) -> None:
        def count() -> float:
            labels = {"gateway": "gw-0", "edge": "grpc", "code": "model_not_found"}
            return stack.gateway.metrics.registry.get_sample_value("segue_refused_total", labels) or 0.0

        before = count()
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="no model"):
                async for _ in stub.Generate(inference_pb2.GenerateRequest(model="nope", text="x")):
                    pass
            asked = inference_pb2.GenerateRequest(model="apart", text="x")
            asked.sampling.max_tokens = 2
            assert [_ async for _ in stub.Generate(asked)]
        assert count() == before + 1

    async def test_workers_are_counted_in_the_state_that_they_are_in(self, stack: Stack) -> None:
        def count(state: str) -> float | None:
            labels = {"gateway": "gw-0", "model": "apart", "pool": "decode", "state": state}
            return stack.gateway.metrics.registry.get_sample_value("segue_workers", labels)

        for index, state in enumerate(("pending", "starting", "failed")):
            stack.controller.add("apart", "decode", f"extra-{index}", "", state)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(10):
                while count("failed") != 1:
                    await stack.gateway.status_changed(0.1)
            assert [count(state) for state in ("ready", "pending", "starting", "draining")] == [1, 1, 1, 0]
        finally:
            for index in range(3):
                stack.controller.remove(f"extra-{index}")


class TestLogs:
    """Words that only a client could have brought in, in places where vLLM is known to repeat them."""

    @pytest.mark.parametrize(
        ("path", "over"),
        [
            ("/v1/messages", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "xylophone"}}),
            ("/v1/messages", {"stop_sequences": ["xylophone", ""]}),
            ("/v1/chat/completions", {"structured_outputs": {"regex": "xylophone((("}}),
            ("/v1/chat/completions", {"temperature": "xylophone"}),
            ("/v1/responses", {"input": [{**CALL, "name": "xylophone", "arguments": "xylophone{"}]}),
            ("/v1/completions", {"model": "xylophone", "prompt": "xylophone"}),
            ("/v1/xylophone", {}),
        ],
    )
    async def test_no_words_of_a_client_in_logs_or_spans(
        self, stack: Stack, path: str, over: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said, exporter = listen(monkeypatch), InMemorySpanExporter()
        monkeypatch.setattr(logging.getLogger("vllm"), "handlers", [*logging.getLogger().handlers])
        tracing.init("test", processor=SimpleSpanProcessor(exporter))
        try:
            assert (await stack.http.post(path, json={**CHAT, **over})).status_code != 500
        finally:
            tracing.shutdown()
        assert "xylophone" not in said.getvalue()
        assert "xylophone" not in "".join(span.to_json() for span in exporter.get_finished_spans())

    async def test_a_refusal_in_grpc_takes_no_words_into_its_span(self, stack: Stack) -> None:
        exporter = InMemorySpanExporter()
        tracing.init("test", processor=SimpleSpanProcessor(exporter))
        asked = inference_pb2.GenerateRequest(model="apart", text="x")
        asked.sampling.structured.regex = "xylophone((("
        try:
            async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
                with pytest.raises(grpc.aio.AioRpcError, match="xylophone"):
                    async for _ in inference_pb2_grpc.InferenceStub(channel).Generate(asked):
                        pass
        finally:
            tracing.shutdown()
        (span,) = exporter.get_finished_spans()
        assert span.status.status_code is StatusCode.ERROR
        assert "xylophone" not in span.to_json()


class TestSpans:
    @pytest.mark.parametrize(("over", "status"), [({}, 200), ({"max_tokens": -1}, 400)])
    async def test_a_requests_span_has_the_status(self, stack: Stack, over: dict[str, Any], status: int) -> None:
        span = await self._span(stack, stack.http.post("/v1/chat/completions", json={**CHAT, **over}))
        assert (span.attributes or {})["http.response.status_code"] == status
        assert span.status.status_code is StatusCode.UNSET

    async def test_what_goes_wrong_inside_marks_it(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        async def unavailable(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        monkeypatch.setattr(stack.gateway.front("apart"), "app", unavailable)
        span = await self._span(stack, stack.http.post("/v1/chat/completions", json=CHAT))
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "not_ready")

    async def test_a_client_that_leaves_marks_it(self, stack: Stack) -> None:
        async def leave() -> None:
            body = {**CHAT, "stream": True, "max_tokens": 400, "ignore_eos": True}
            async with stack.http.stream("POST", "/v1/chat/completions", json=body) as response:
                await anext(response.aiter_lines())

        span = await self._span(stack, leave())
        assert (span.attributes or {})["segue.outcome"] == "cancelled"

    @staticmethod
    async def _span(stack: Stack, asking: Any) -> ReadableSpan:
        exporter = InMemorySpanExporter()
        tracing.init("test", processor=SimpleSpanProcessor(exporter))
        try:
            await asking
            await stack.quiet()
            async with asyncio.timeout(5):
                while not (found := [s for s in exporter.get_finished_spans() if s.name == "segue.request"]):
                    await stack.gateway.status_changed(0.02)
        finally:
            tracing.shutdown()
        return found[0]
