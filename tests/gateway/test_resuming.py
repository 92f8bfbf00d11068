"""A decode worker that dies is a pause to its clients: every token comes once, and is the one that would have come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest

from orchestrator.core.errors import SegueError
from orchestrator.core.spec import Role
from orchestrator.core.types import SENT_TOKENS
from orchestrator.gateway.resuming import is_resumable, prefilled, resumed
from tests.gateway.support import Stack, cluster, model, running
from tests.gateway.test_losses import PROMPT, streaming
from tests.workers.support import mock_worker

STEP_SECONDS = 0.02
TOKENS = 60


@asynccontextmanager
async def two_decoders(*roles: Role, **settings: Any) -> AsyncIterator[Stack]:
    """A stack whose last pool has a second worker."""
    spec = cluster(model("m", "tiny:llama", *roles), queue_seconds=2.0)
    role = roles[-1]
    async with running(spec, step_seconds=STEP_SECONDS, **settings) as stack:
        second = f"m-{role}-1"
        own = mock_worker(
            role, "m", worker_id=second, block_size=16, max_model_len=512, step_seconds=STEP_SECONDS, **settings
        )
        async with own as worker:
            stack.workers[second] = worker
            stack.controller.add("m", role, second, worker.address)
            async with asyncio.timeout(10):
                while stack.gateway.driver.load(second) is None:
                    await stack.gateway.status_changed(0.1)
            yield stack
            await stack.quiet()


async def kill_who_decodes(stack: Stack, role: Role) -> str:
    """Once some tokens are out."""
    async with asyncio.timeout(10):
        while True:
            flights = stack.gateway.driver._flights._by_request.values()
            if victim := next((each.decode_worker for each in flights if each.output_tokens >= 5), ""):
                await stack.workers[victim].server.stop(None)
                return victim
            await asyncio.sleep(0.01)


def text(events: list[dict[str, Any]], choice: int = 0) -> str:
    return "".join(
        each["text"] for event in events for each in event["choices"] if each["index"] == choice
    )  # fmt: skip


@pytest.mark.parametrize("roles", [(Role.SERVE,), (Role.PREFILL, Role.DECODE)])
async def test_a_stream_goes_on_where_it_was(roles: tuple[Role, ...]) -> None:
    asked = {"max_tokens": TOKENS, "stream_options": {"include_usage": True}}
    async with two_decoders(*roles) as stack:
        whole = await streaming(stack, asyncio.Event(), **asked)
        task = asyncio.create_task(streaming(stack, asyncio.Event(), **asked))
        await kill_who_decodes(stack, roles[-1])
        events = await asyncio.wait_for(task, 20)
        assert text(events) == text(whole)
        assert events[-1]["usage"] == whole[-1]["usage"]
        assert events[-1]["usage"]["completion_tokens"] == TOKENS
        ends = [each["finish_reason"] for event in events for each in event["choices"] if each["finish_reason"]]
        assert ends == ["length"]


async def test_each_of_several_answers_goes_on_and_one_that_is_no_stream_is_whole() -> None:
    asked = {**PROMPT, "max_tokens": TOKENS, "n": 3}
    async with two_decoders(Role.SERVE) as stack:
        whole = (await stack.http.post("/v1/completions", json=asked)).json()
        task = asyncio.create_task(stack.http.post("/v1/completions", json=asked))
        await kill_who_decodes(stack, Role.SERVE)
        response = await asyncio.wait_for(task, 20)
        assert response.status_code == 200
        assert [each["text"] for each in response.json()["choices"]] == [each["text"] for each in whole["choices"]]
        assert response.json()["usage"] == whole["usage"]


async def test_a_stop_string_that_is_cut_in_two_still_stops() -> None:
    async with two_decoders(Role.SERVE) as stack:
        whole = (await stack.http.post("/v1/completions", json={**PROMPT, "max_tokens": TOKENS})).json()
        stop = whole["choices"][0]["text"][-12:-4]
        asked = {**PROMPT, "max_tokens": TOKENS, "stop": stop}
        expected = (await stack.http.post("/v1/completions", json=asked)).json()["choices"][0]
        task = asyncio.create_task(stack.http.post("/v1/completions", json=asked))
        await kill_who_decodes(stack, Role.SERVE)
        got = (await asyncio.wait_for(task, 20)).json()["choices"][0]
        assert (got["text"], got["finish_reason"]) == (expected["text"], expected["finish_reason"])


def request(**params: Any) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(**params),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


@pytest.mark.parametrize(
    "params",
    [
        {"structured_outputs": StructuredOutputsParams(regex="a+")},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"seed": 7},
        {"bad_words": ["no"]},
    ],
)
def test_what_depends_on_the_output_so_far_is_never_begun_anew(params: dict[str, Any]) -> None:
    assert not is_resumable(request(**params), restores=False)
    assert is_resumable(request(**params), restores=True)
    assert is_resumable(request(temperature=0, seed=7), restores=False)
    assert is_resumable(request(repetition_penalty=1.2, logprobs=3), restores=False)


def test_an_engine_that_restores_is_told_what_was_sent() -> None:
    asked = request(max_tokens=10, min_tokens=6, prompt_logprobs=2, extra_args={"own": 1})
    again = resumed(asked, [7, 8], longer_prompt=False, restores=True)
    assert again.prompt_token_ids == [1, 2, 3]
    params = again.sampling_params
    assert params is not None
    assert (params.max_tokens, params.min_tokens, params.prompt_logprobs) == (10, 6, None)
    assert params.extra_args == {"own": 1, SENT_TOKENS: [7, 8]}
    assert asked.sampling_params is not None
    assert asked.sampling_params.extra_args == {"own": 1}


def test_to_any_other_engine_what_was_sent_is_prompt_and_counts_no_more() -> None:
    asked = request(max_tokens=10, min_tokens=6, prompt_logprobs=2)
    again = resumed(asked, [7, 8, 9, 10], longer_prompt=True, restores=False)
    assert again.prompt_token_ids == [1, 2, 3, 7, 8, 9, 10]
    params = again.sampling_params
    assert params is not None
    assert (params.max_tokens, params.min_tokens, params.prompt_logprobs) == (6, 2, None)
    assert asked.prompt_token_ids == [1, 2, 3]
    assert asked.sampling_params is not None
    assert asked.sampling_params.max_tokens == 10
    assert resumed(asked, [], longer_prompt=False, restores=True) is asked


def test_what_is_handed_over_is_the_prompt_that_the_other_half_knows_of() -> None:
    asked, sent = request(max_tokens=10), [7, 8]
    for restores in (True, False):
        again = resumed(asked, sent, longer_prompt=not restores, restores=restores)
        assert prefilled(asked, sent, longer_prompt=not restores).prompt_token_ids == again.prompt_token_ids


@pytest.mark.parametrize(("longer_prompt", "restores"), [(True, True), (True, False), (False, False)])
def test_where_it_can_not_go_on_it_does_not(longer_prompt: bool, restores: bool) -> None:
    """Workers of one model may differ while one version replaces another."""
    with pytest.raises(SegueError):
        resumed(request(seed=7), [7, 8], longer_prompt, restores)
