"""The gRPC edge on the real front end and the real seam, with mock workers on the real session protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.core.spec import Role
from orchestrator.gateway import rpc_embed
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2_grpc
from orchestrator.proto import inference_pb2 as pb
from tests.gateway.support import Stack, cluster, model, running
from tests.rpc.client import error_info, generate_by_reflection

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}},
    },
}


@pytest_asyncio.fixture(loop_scope="session")
async def inference(stack: Stack) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


async def generate(inference: Any, **request: Any) -> list[pb.GenerateResponse]:
    sampling = pb.SamplingParams(**{"max_tokens": 8, **request.pop("sampling", {})})
    call = inference.Generate(pb.GenerateRequest(sampling=sampling, **{"model": "m", **request}), timeout=20)
    return [message async for message in call]


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def text(messages: list[pb.GenerateResponse], index: int = 0) -> str:
    return "".join(s.text for message in messages for s in message.sequences if s.index == index)


def ids(messages: list[pb.GenerateResponse], index: int = 0) -> list[int]:
    return [i for message in messages for s in message.sequences if s.index == index for i in s.token_ids]


async def test_text_is_what_the_completions_api_answers(stack: Stack, inference: Any) -> None:
    messages = await generate(inference, text="once upon a time")
    body = {"model": "m", "prompt": "once upon a time", "max_tokens": 8}
    answer = (await stack.http.post("/v1/completions", json=body)).json()

    assert text(messages) == answer["choices"][0]["text"]
    assert messages[-1].usage.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert messages[-1].usage.completion_tokens == len(ids(messages)) == 8


async def test_chat_is_what_the_chat_api_answers(stack: Stack, inference: Any) -> None:
    said = [("system", "Be brief."), ("user", "Hello there"), ("assistant", "Hi."), ("user", "And now?")]
    messages = await generate(inference, chat=pb.Chat(messages=[pb.ChatMessage(role=r, content=c) for r, c in said]))
    body = {"model": "m", "messages": [{"role": r, "content": c} for r, c in said], "max_tokens": 8}
    answer = (await stack.http.post("/v1/chat/completions", json=body)).json()

    assert text(messages) == answer["choices"][0]["message"]["content"]
    assert messages[-1].usage.prompt_tokens == answer["usage"]["prompt_tokens"]


async def test_token_ids_are_read_as_they_are(stack: Stack, inference: Any) -> None:
    tokens = (await stack.http.post("/tokenize", json={"model": "m", "prompt": "once upon a time"})).json()["tokens"]
    by_ids = await generate(inference, token_ids=pb.TokenIds(ids=tokens))
    by_text = await generate(inference, text="once upon a time")
    assert ids(by_ids) == ids(by_text)
    assert by_ids[-1].usage.prompt_tokens == len(tokens)


async def test_tools_are_rendered_although_nothing_here_parses_calls(stack: Stack, inference: Any) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="1+1?")])
    chat.tools.append(json.dumps(TOOL))
    messages = await generate(inference, chat=chat)
    body = {"model": "m", "messages": [{"role": "user", "content": "1+1?"}]}
    without = (await stack.http.post("/tokenize", json=body)).json()["count"]
    with_tools = (await stack.http.post("/tokenize", json={**body, "tools": [TOOL]})).json()["count"]

    assert messages[-1].usage.prompt_tokens == with_tools > without
    assert len(ids(messages)) == 8


async def test_a_model_whose_http_side_parses_calls_gives_them_unparsed(stack: Stack, inference: Any) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="1+1?")], tools=[json.dumps(TOOL)])
    messages = await generate(inference, model="parsing", chat=chat)
    body = {"model": "parsing", "messages": [{"role": "user", "content": "1+1?"}], "tools": [TOOL], "max_tokens": 8}
    answer = (await stack.http.post("/v1/chat/completions", json=body)).json()

    assert messages[-1].usage.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert text(messages) == answer["choices"][0]["message"]["content"]
    placement = messages[-1].placement
    assert (placement.prefill_worker, placement.decode_worker, placement.kv_bytes) == ("", "parsing-serve-0", 0)


async def test_the_end_says_where_each_half_ran_and_what_moved(inference: Any) -> None:
    last = (await generate(inference, token_ids=pb.TokenIds(ids=list(range(500, 580)))))[-1]

    assert (last.placement.prefill_worker, last.placement.decode_worker) == ("m-prefill-0", "m-decode-0")
    assert last.usage.transferred_tokens > 0
    assert last.placement.kv_bytes > 0
    assert 0 < last.placement.prefill_seconds < last.placement.ttft_seconds


async def test_several_sequences(inference: Any) -> None:
    messages = await generate(inference, text="once", sampling={"n": 3, "temperature": 1.0})
    assert [len(ids(messages, index)) for index in range(3)] == [8, 8, 8]
    assert messages[-1].usage.completion_tokens == 24
    assert messages[-1].placement.decode_worker


async def test_a_stop_string_ends_it_and_the_placement_still_comes(inference: Any) -> None:
    whole = text(await generate(inference, text="once", sampling={"max_tokens": 20}))
    word = whole[len(whole) // 2 :][:4]
    messages = await generate(inference, text="once", sampling={"max_tokens": 20, "stop": [word]})

    assert text(messages) == whole[: whole.index(word)]
    (end,) = [s for message in messages for s in message.sequences if s.finish_reason]
    assert (end.finish_reason, end.stop_reason) == (pb.STOP, word)
    assert messages[-1].placement.decode_worker == "m-decode-0"


async def test_cancelling_and_deadlines_free_the_workers(stack: Stack, inference: Any) -> None:
    request = pb.GenerateRequest(model="m", text="once", sampling=pb.SamplingParams(max_tokens=400))
    calls = [inference.Generate(request) for _ in range(8)]
    for call in calls:
        await call.read()
    for call in calls:
        call.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as late:
        async for _ in inference.Generate(request, timeout=0.1):
            pass
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stack.quiet(5)


async def test_a_prompt_over_the_context_is_refused(inference: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await generate(inference, token_ids=pb.TokenIds(ids=[7] * 600))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "512" in (refused.value.details() or "")


async def test_a_token_outside_the_vocabulary_is_refused(inference: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await generate(inference, token_ids=pb.TokenIds(ids=[10**8]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "sampling",
    [
        {"structured": pb.StructuredOutput(json_schema="{no json")},
        {"structured": pb.StructuredOutput(regex="(")},
        {"structured": pb.StructuredOutput(grammar="no grammar")},
        {"structured": pb.StructuredOutput(structural_tag="{}")},
        {"logprobs": 1000},
        {"prompt_logprobs": 1000},
        {"allowed_token_ids": [10**8]},
        {"logit_bias": {10**8: 1.0}},
        {"logprob_token_ids": [10**8]},
        {"logprob_token_ids": list(range(200))},
        {"thinking_token_budget": 5},
        {"trace_decode_token_ids": [5]},
        {"prompt_logprob_token_ids": [pb.PromptScores(ids=[1])]},
        {"stop_token_ids": [10**8]},
    ],
    ids=lambda sampling: "-".join(sampling),
)
async def test_what_the_model_or_the_engine_cannot_do_is_the_callers_to_mend(
    inference: Any, sampling: dict[str, Any]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await generate(inference, text="once", sampling=sampling)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value.details()
    assert refused.value.details()


async def test_a_template_from_a_client_is_not_trusted(inference: Any) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="x")])
    chat.template_kwargs.update({"chat_template": "{{ 1 }}"})
    for tools in (False, True):
        if tools:
            chat.tools.append(json.dumps(TOOL))
        with pytest.raises(grpc.aio.AioRpcError, match="untrusted") as refused:
            await generate(inference, chat=chat)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_priority_is_taken_whatever_the_engines_policy(inference: Any) -> None:
    assert len(ids(await generate(inference, text="once", priority=-5))) == 8


async def test_texts_to_embed_are_tokenized_as_over_http(stack: Stack) -> None:
    texts = ["once upon a time", "there was"]
    rendered = await rpc_embed._render(stack.gateway.front("m"), texts)
    for text_, engine_input in zip(texts, rendered, strict=True):
        answer = (await stack.http.post("/tokenize", json={"model": "m", "prompt": text_})).json()
        assert engine_input["prompt_token_ids"] == answer["tokens"]


async def test_a_client_made_from_reflection_alone_talks_to_the_whole(stack: Stack) -> None:
    messages, _ = await asyncio.to_thread(generate_by_reflection, stack.grpc_address, model="m")
    assert "".join(s.text for m in messages for s in m.sequences)
    assert messages[-1].placement.decode_worker == "m-decode-0"


async def test_a_worker_that_dies_with_none_to_take_over_is_unavailable_and_so_is_the_service() -> None:
    spec = cluster(model("m", "tiny:llama", Role.SERVE), queue_seconds=0.5)
    async with running(spec, step_seconds=0.02) as stack, grpc.aio.insecure_channel(stack.grpc_address) as channel:
        request = pb.GenerateRequest(text="once", sampling=pb.SamplingParams(max_tokens=200))
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=20)
        await call.read()
        stack.workers["m-serve-0"].engine.fail()
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await read_all(call)
        assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error_info(lost.value).reason in ("worker_lost", "not_ready")

        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "segue.v1.Inference"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_models_and_the_cluster_are_told(stack: Stack, inference: Any) -> None:
    shared = {"tasks": ["generate"], "max_model_len": 512, "ready": True}
    assert list((await inference.ListModels(pb.ListModelsRequest(), timeout=5)).models) == [
        pb.Model(name="m", disaggregated=True, **shared),
        pb.Model(name="parsing", disaggregated=False, **shared),
    ]
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        status = await cluster_pb2_grpc.ClusterStub(channel).Status(cluster_pb2.StatusRequest(), timeout=5)
    assert status.ready
    assert {worker.id for entry in status.models for pool in entry.pools for worker in pool.workers} == set(
        stack.workers
    )


async def test_requests_over_grpc_are_in_the_metrics(stack: Stack, inference: Any) -> None:
    counted = {
        'segue_requests_total{gateway="gw-0",model="m",outcome="finished"}': 1,
        'segue_ttft_seconds_count{gateway="gw-0",model="m"}': 1,
        'segue_output_tokens_total{gateway="gw-0",model="m",pool="decode",worker="m-decode-0"}': 8,
        'segue_kv_transfers_total{gateway="gw-0",model="m",outcome="moved",pool="decode",worker="m-decode-0"}': 1,
    }

    async def now() -> dict[str, float]:
        lines = (await stack.http.get("/metrics")).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert values['segue_workers{gateway="gw-0",model="m",pool="decode",state="ready"}'] == "1.0"
        return {name: float(values.get(name, 0)) for name in counted}

    before = await now()
    await generate(inference, token_ids=pb.TokenIds(ids=list(range(700, 780))))
    await stack.quiet()
    after = await now()
    assert {name: after[name] - before[name] for name in counted} == counted


async def test_sixteen_at_once_answer_as_one_would(inference: Any) -> None:
    prompts = [f"story number {number}" for number in range(16)]
    alone = [ids(await generate(inference, text=prompt)) for prompt in prompts]
    together = await asyncio.gather(*(generate(inference, text=prompt) for prompt in prompts))
    assert [ids(messages) for messages in together] == alone
    assert len({tuple(each) for each in alone}) > 1
