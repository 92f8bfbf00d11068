"""The tokens are the model's own: prefill and decode apart, together, and transformers run directly, all agree."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc.aio
import httpx
import pytest

from orchestrator.proto import inference_pb2 as pb
from orchestrator.proto import inference_pb2_grpc
from tests.e2e.conftest import APART, TOGETHER, RealCluster
from tests.e2e.golden import OUTPUT_TOKENS, Golden, transformers_greedy

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def golden(smollm2_path: str) -> list[Golden]:
    return transformers_greedy(smollm2_path)


def body(model: str, prompt: list[int], **over: Any) -> dict[str, Any]:
    greedy = {"temperature": 0, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "return_token_ids": True}
    return {"model": model, "prompt": prompt, **greedy, **over}


async def whole(http: httpx.AsyncClient, model: str, prompt: list[int]) -> list[int]:
    response = await http.post("/v1/completions", json=body(model, prompt))
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


async def streamed(http: httpx.AsyncClient, model: str, prompt: list[int]) -> list[int]:
    ids: list[int] = []
    async with http.stream("POST", "/v1/completions", json=body(model, prompt, stream=True)) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    ids += choice["token_ids"] or []
    return ids


@pytest.mark.parametrize("model", [APART, TOGETHER])
@pytest.mark.parametrize("ask", [whole, streamed])
async def test_equals_transformers_sixteen_at_once(
    cluster: RealCluster, golden: list[Golden], model: str, ask: Any
) -> None:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=200) as http:
        answers = await asyncio.gather(*(ask(http, model, one.prompt) for one in golden))
    for one, answer in zip(golden, answers, strict=True):
        assert answer == one.output, f"prompt of {len(one.prompt)} tokens"


async def generate(stub: Any, prompt: list[int]) -> tuple[list[int], pb.GenerateResponse]:
    sampling = pb.SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    request = pb.GenerateRequest(model=APART, token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
    ids: list[int] = []
    last = pb.GenerateResponse()
    async for last in stub.Generate(request, timeout=120):
        for delta in last.sequences:
            ids += delta.token_ids
    return ids, last


async def test_prompts_come_over_the_transfer_and_are_not_computed_again(
    cluster: RealCluster, golden: list[Golden]
) -> None:
    """By the decode engine's own account of each prompt (vLLM's PrefillStats), over gRPC."""
    async with grpc.aio.insecure_channel(cluster.grpc) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        for one in (golden[0], golden[5], golden[-1]):
            # Shifted by one token: no prefix cache, on either side, has seen it.
            fresh = [1, *one.prompt]
            ids, last = await generate(stub, fresh)
            assert len(ids) == OUTPUT_TOKENS
            assert last.usage.transferred_tokens == len(fresh)
            assert last.usage.cached_tokens == 0
            assert last.placement.prefill_worker.startswith(f"{APART}-prefill")
            assert last.placement.decode_worker.startswith(f"{APART}-decode")
            assert last.placement.kv_bytes > 0


async def test_grpc_gives_the_same_tokens(cluster: RealCluster, golden: list[Golden]) -> None:
    async with grpc.aio.insecure_channel(cluster.grpc) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        answers = await asyncio.gather(*(generate(stub, one.prompt) for one in golden[:4]))
    assert [ids for ids, _ in answers] == [one.output for one in golden[:4]]
