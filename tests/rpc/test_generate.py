"""What a client of Generate sees, with a scripted engine behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.proto import inference_pb2 as pb
from orchestrator.telemetry import tracing
from tests.rpc.fake import PROMPT, Edge, Freeze, logprob, report, step

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = pb.GenerateRequest(text="Once upon a time")


async def generate(edge: Edge, request: pb.GenerateRequest = TEXT, **call: Any) -> list[pb.GenerateResponse]:
    return [message async for message in edge.inference.Generate(request, timeout=10, **call)]


class TestPrompts:
    async def test_text_token_ids_and_chat_reach_the_renderer_as_over_http(self, edge: Edge) -> None:
        chat = pb.Chat(messages=[pb.ChatMessage(role="system", content="Be brief"), pb.ChatMessage(role="user")])
        chat.messages[1].content = "Hello"
        chat.template_kwargs.update({"enable_thinking": False, "depth": 2})
        for prompt in ({"text": "Once"}, {"token_ids": pb.TokenIds(ids=[5, 6])}, {"chat": chat}):
            await generate(edge, pb.GenerateRequest(**prompt))

        text, ids, messages = edge.gateway.the_front.renderer.asked
        assert text.prompt == "Once"
        assert ids.prompt == [5, 6]
        assert [(m["role"], m["content"]) for m in messages.messages] == [("system", "Be brief"), ("user", "Hello")]
        assert messages.chat_template_kwargs == {"enable_thinking": False, "depth": 2}
        assert isinstance(messages.chat_template_kwargs["depth"], int)
        assert [call.engine_input for call in edge.llm.calls] == [{"prompt_token_ids": PROMPT}] * 3

    async def test_a_tool_conversation_keeps_its_calls_and_answers(self, edge: Edge) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "minProperties": 1}}}
        request = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="1+1?")]))
        request.chat.messages.add(role="assistant").tool_calls.append(json.dumps(call))
        request.chat.messages.add(role="tool", content="2", tool_call_id="c1")
        request.chat.tools.append(json.dumps(tool))
        await generate(edge, request)

        (asked,) = edge.gateway.the_front.renderer.asked
        assert asked.tool_choice == "auto"
        assert asked.tools[0].model_dump(exclude_none=True) == tool
        assert list(asked.messages[1]["tool_calls"]) == [call]
        assert asked.messages[1].get("content") is None
        assert asked.messages[2]["tool_call_id"] == "c1"

    @pytest.mark.parametrize(
        "request_", [pb.GenerateRequest(), pb.GenerateRequest(token_ids=pb.TokenIds())], ids=["none", "no ids"]
    )
    async def test_no_prompt_is_refused(self, edge: Edge, request_: pb.GenerateRequest) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="prompt") as refused:
            await generate(edge, request_)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert edge.llm.calls == []

    async def test_priority_adapter_and_id_go_to_the_engine(self, edge: Edge) -> None:
        request = pb.GenerateRequest(text="x", priority=-3, adapter="poet", request_id="mine-1")
        messages = await generate(edge, request)

        (call,) = edge.llm.calls
        assert call.request_id == "mine-1"
        assert call.options == {"priority": -3, "lora_request": "the poet adapter"}
        assert {message.request_id for message in messages} == {"mine-1"}

    async def test_a_request_without_an_id_gets_one_of_its_own(self, edge: Edge) -> None:
        ids = [(await generate(edge))[0].request_id for _ in range(2)]
        assert len(set(ids)) == 2
        assert all(ids)


class TestStream:
    async def test_each_step_is_one_message_and_the_last_says_what_it_took(self, edge: Edge) -> None:
        edge.llm.script = [step("Hel", [10, 11]), report(), step("lo", [12], "length")]
        first, second, last = await generate(edge)

        assert [(s.index, s.text, list(s.token_ids), s.finish_reason) for s in first.sequences] == [
            (0, "Hel", [10, 11], pb.FINISH_REASON_UNSPECIFIED)
        ]
        assert [(s.text, list(s.token_ids), s.finish_reason) for s in second.sequences] == [("lo", [12], pb.LENGTH)]
        assert not second.HasField("usage")
        assert last.usage == pb.Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=1, transferred_tokens=4)
        assert last.placement == pb.Placement(
            prefill_worker="p0",
            decode_worker="d0",
            kv_bytes=1024,
            queue_seconds=0.001,
            prefill_seconds=0.25,
            transfer_seconds=0.125,
            ttft_seconds=0.5,
        )

    async def test_a_step_is_sent_before_the_next_is_there(self, edge: Edge) -> None:
        freeze = Freeze()
        edge.llm.script = [step("a", [1]), freeze, step("b", [2], "stop")]
        call = edge.inference.Generate(TEXT, timeout=10)
        assert (await call.read()).sequences[0].text == "a"
        freeze.thaw.set()
        assert (await call.read()).sequences[0].text == "b"

    async def test_several_sequences_end_each_in_their_own_way(self, edge: Edge) -> None:
        edge.llm.script = [
            step("a", [1], index=0, last=False),
            step("b", [2], "stop", index=1, stop="END", last=False),
            report(kv_bytes=100, decode_worker="d1"),
            report(kv_bytes=10, decode_worker="d2"),
            step("c", [3], "repetition", index=0),
        ]
        request = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(n=2, temperature=1))
        *deltas, last = await generate(edge, request)

        ends = {s.index: s for message in deltas for s in message.sequences if s.finish_reason}
        assert ends[0].finish_reason == pb.REPETITION
        assert (ends[1].finish_reason, ends[1].stop_reason) == (pb.STOP, "END")
        assert last.usage.completion_tokens == 3
        assert (last.placement.decode_worker, last.placement.kv_bytes) == ("d1", 110)

    async def test_a_stop_token_is_told_from_a_stop_string(self, edge: Edge) -> None:
        edge.llm.script = [step("", [42], "stop", stop=42)]
        (delta, _) = await generate(edge)
        assert delta.sequences[0].stop_token_id == 42
        assert delta.sequences[0].stop_reason == ""

    async def test_an_engine_that_ends_for_eos_names_no_reason(self, edge: Edge) -> None:
        (delta, _) = await generate(edge)
        assert not delta.sequences[0].HasField("stop_token_id")

    async def test_nothing_is_sent_for_a_step_that_only_read_the_prompt(self, edge: Edge) -> None:
        edge.llm.script = [step(last=False), step("a", [1], "stop")]
        assert [len(message.sequences) for message in await generate(edge)] == [1, 0]

    async def test_log_probabilities_start_with_the_chosen_token(self, edge: Edge) -> None:
        position = {9: logprob(-0.1, 1, "nine"), 8: logprob(-2.5, 7, "eight")}
        edge.llm.script = [
            step("eight", [8], "stop", logprobs=[position], prompt_logprobs=[None, {2: logprob(-1.0, None, None)}])
        ]
        (delta, _) = await generate(edge)

        (candidates,) = [entry.candidates for entry in delta.sequences[0].logprobs]
        assert [(c.token_id, c.rank, c.token) for c in candidates] == [(8, 7, "eight"), (9, 1, "nine")]
        assert candidates[0].logprob == pytest.approx(-2.5)
        assert [len(entry.candidates) for entry in delta.prompt_logprobs] == [0, 1]
        assert (delta.prompt_logprobs[1].candidates[0].rank, delta.prompt_logprobs[1].candidates[0].token) == (0, "")

    async def test_scores_of_prompt_tokens_come_row_by_row(self, edge: Edge) -> None:
        scores = np.array([[-1.0, -2.0], [-3.0, -np.inf]], dtype=np.float32)
        edge.llm.script = [step("a", [1], "stop", prompt_token_id_logprobs=scores)]
        (delta, _) = await generate(edge)
        assert [list(row.logprobs) for row in delta.prompt_token_id_logprobs] == scores.tolist()

    async def test_without_a_report_usage_is_still_counted(self, edge: Edge) -> None:
        *_, last = await generate(edge)
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (5, 1, 2)
        assert not last.HasField("placement")

    async def test_a_report_that_comes_a_moment_late_is_waited_for(self, edge: Edge) -> None:
        call = edge.inference.Generate(TEXT, timeout=10)
        await call.read()
        context = edge.llm.calls[0].context
        assert context is not None
        context.reports.append(report())
        assert (await call.read()).placement.decode_worker == "d0"


class TestEnds:
    async def test_a_deadline_ends_the_engines_work(self, edge: Edge) -> None:
        edge.llm.script = [step("a", [1]), Freeze(), step("b", [2], "stop")]
        call = edge.inference.Generate(TEXT, timeout=1.5)
        assert (await call.read()).sequences[0].text == "a"
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await call.read()

        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(edge.llm.calls[0].ended.wait(), 10)
        assert not edge.llm.calls[0].completed

    async def test_the_seam_sees_the_deadline(self, edge: Edge) -> None:
        before = asyncio.get_running_loop().time()
        await generate(edge)
        context = edge.llm.calls[0].context
        assert context is not None
        assert context.deadline == pytest.approx(before + 10, abs=1)

    async def test_cancelling_while_the_engine_works_ends_it(self, edge: Edge) -> None:
        freeze = Freeze()
        edge.llm.script = [freeze]
        call = edge.inference.Generate(TEXT)
        read = asyncio.create_task(call.read())
        await asyncio.wait_for(freeze.reached.wait(), 10)
        call.cancel()

        await asyncio.wait_for(edge.llm.calls[0].ended.wait(), 10)
        with pytest.raises(asyncio.CancelledError):
            await read

    async def test_cancelling_while_the_client_does_not_read_ends_it_too(self, edge: Edge) -> None:
        """The handler waits in its write then, not in the engine."""
        taken = 0

        def endless() -> Iterator[Any]:
            nonlocal taken
            large = step("x" * 1_000_000, [1])
            while True:
                taken += 1
                yield large

        edge.llm.script = endless()
        call = edge.inference.Generate(TEXT)
        await call.read()
        before = 0
        async with asyncio.timeout(10):
            while taken > before:  # until the buffers on the way are full
                before = taken
                await asyncio.sleep(0.3)
        call.cancel()

        await asyncio.wait_for(edge.llm.calls[0].ended.wait(), 10)
        assert not edge.llm.calls[0].completed

    async def test_a_client_whose_connection_drops_is_noticed(self, edge: Edge) -> None:
        freeze = Freeze()
        edge.llm.script = [step("a", [1]), freeze]
        channel = grpc.aio.insecure_channel(edge.address, options=[("grpc.use_local_subchannel_pool", 1)])
        stub = type(edge.inference)(channel)
        call = stub.Generate(TEXT)
        await call.read()
        await channel.close()

        await asyncio.wait_for(edge.llm.calls[0].ended.wait(), 10)


class TestTrace:
    async def test_the_callers_trace_goes_through_the_span_to_the_seam(self, edge: Edge) -> None:
        exporter = InMemorySpanExporter()
        tracing.init("segue-test", processor=SimpleSpanProcessor(exporter))
        try:
            trace = "4bf92f3577b34da6a3ce929d0e0e4736"
            await generate(edge, metadata=[("traceparent", f"00-{trace}-00f067aa0ba902b7-01")])
        finally:
            tracing.shutdown()

        (span,) = exporter.get_finished_spans()
        context = edge.llm.calls[0].context
        assert context is not None
        assert context.trace["traceparent"] == f"00-{trace}-{span.context.span_id:016x}-01"
        assert span.name == "segue.request"
        assert span.parent is not None
        assert span.parent.span_id == 0x00F067AA0BA902B7
        assert "Once" not in span.to_json()

    async def test_without_an_exporter_the_callers_trace_goes_on_as_it_came(self, edge: Edge) -> None:
        header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        await generate(edge, metadata=[("traceparent", header)])
        context = edge.llm.calls[0].context
        assert context is not None
        assert context.trace == {"traceparent": header}
