"""A gateway that is told of another configuration changes over in place: what is open stays open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.config import digest
from orchestrator.core.spec import ClusterSpec, ModelSpec, PrefillPlace, Role, RoutingSpec, SloSpec
from orchestrator.gateway import served
from tests.gateway.support import Stack, cluster, model, names, running
from tests.workers.support import mock_worker

PROMPT = {"prompt": "once upon a time there was a river", "max_tokens": 4, "ignore_eos": True}
BEFORE = cluster(model("m", "tiny:llama", Role.PREFILL, Role.DECODE))


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running(BEFORE, step_seconds=0.02) as own:
        yield own
        await own.quiet()


async def told(stack: Stack, spec: ClusterSpec) -> None:
    """Until it has taken the specification, or refused it."""
    stack.controller._spec = spec
    stack.controller.publish()
    async with asyncio.timeout(30):
        while digest(spec) not in (stack.gateway.served.serves, stack.gateway.served.refuses):
            await stack.gateway.status_changed(0.1)


async def streamed(stack: Stack, begun: asyncio.Event, tokens: int) -> list[str]:
    lines = []
    body = {**PROMPT, "model": "m", "max_tokens": tokens, "stream": True}
    async with stack.http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                lines.append(line)
                begun.set()
    return lines


async def test_a_model_that_is_added_is_served_and_one_that_is_taken_out_finishes_what_runs(stack: Stack) -> None:
    begun = asyncio.Event()
    running_on = asyncio.create_task(streamed(stack, begun, 100))
    await asyncio.wait_for(begun.wait(), 10)
    more = replace(BEFORE, models=(*BEFORE.models, model("n", "tiny:llama", Role.SERVE)))
    await told(stack, more)
    assert (await stack.http.get("/ready")).status_code == 200  # one that is only coming is no reason to leave
    assert (await stack.http.post("/v1/completions", json={**PROMPT, "model": "n"})).status_code == 503
    async with mock_worker(Role.SERVE, "n", worker_id="n-serve-0", block_size=16, max_model_len=512) as worker:
        stack.controller.add("n", Role.SERVE, "n-serve-0", worker.address)
        async with asyncio.timeout(20):
            while (await stack.http.post("/v1/completions", json={**PROMPT, "model": "n"})).status_code != 200:
                await stack.gateway.status_changed(0.2)
        assert names((await stack.http.get("/v1/models")).json()["data"]) == {"m", "n"}
        only = replace(BEFORE, models=(more.models[1],))
        stack.gateway.served.tell(only)
        async with asyncio.timeout(20):
            while digest(only) != stack.gateway.served.serves:
                await stack.gateway.status_changed(0.1)
        assert (await stack.http.post("/v1/completions", json={**PROMPT, "model": "m"})).status_code == 404
        lines = await asyncio.wait_for(running_on, 20)
        assert lines[-1] == "data: [DONE]"
        assert not any("error" in line for line in lines)


async def test_a_front_end_with_other_options_takes_the_place_of_one_that_still_streams(stack: Stack) -> None:
    begun = asyncio.Event()
    running_on = asyncio.create_task(streamed(stack, begun, 100))
    await asyncio.wait_for(begun.wait(), 10)
    old = stack.gateway.front("m")
    [one] = BEFORE.models
    await told(stack, replace(BEFORE, models=(replace(one, frontend={"response_role": "helper"}),)))
    assert stack.gateway.front("m") is not old
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    template = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    await told(stack, replace(BEFORE, models=(replace(one, frontend={"response_role": "helper", **template}),)))
    answer = (await stack.http.post("/v1/chat/completions", json=chat)).json()
    assert answer["choices"][0]["message"]["role"] == "helper"
    assert (await asyncio.wait_for(running_on, 20))[-1] == "data: [DONE]"


async def test_one_that_cant_be_built_leaves_the_old_and_says_why(stack: Stack) -> None:
    bad = replace(BEFORE, models=(*BEFORE.models, model("n", "/no/such/folder", Role.SERVE)))
    await told(stack, bad)
    assert stack.gateway.served.serves == digest(BEFORE)
    assert stack.gateway.served.refuses == digest(bad)
    assert "/no/such/folder" in stack.gateway.served.refusal
    assert (await stack.http.post("/v1/completions", json={**PROMPT, "model": "m"})).status_code == 200
    stack.gateway.served.tell(BEFORE)
    async with asyncio.timeout(10):
        while stack.gateway.served.refuses:
            await stack.gateway.status_changed(0.1)


def output_tasks() -> int:
    """One for each front end of vLLM's that was begun and not closed."""
    return sum("output_handler" in task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]


NO_SOURCE = model("z", "/no/such/folder", Role.SERVE)
NO_TEMPLATE = replace(BEFORE.models[0], frontend={"chat_template": "/no/such/template.jinja"})


@pytest.mark.parametrize("broken", [NO_SOURCE, NO_TEMPLATE], ids=["not built", "not opened"])
async def test_nothing_is_left_of_front_ends_that_were_begun_beside_one_that_cant_be(
    stack: Stack, broken: ModelSpec
) -> None:
    before = output_tasks()
    assert before
    others = [each for each in BEFORE.models if each.name != broken.name]
    bad = replace(BEFORE, models=(model("n", "tiny:llama", Role.SERVE), broken, *others))
    await told(stack, bad)
    assert stack.gateway.served.refuses == digest(bad)
    await asyncio.sleep(0)
    assert output_tasks() == before


@pytest.mark.parametrize(("place", "apart"), [(PrefillPlace.IN_PLACE, False), (PrefillPlace.APART, True)])
async def test_a_model_is_routed_as_the_new_one_says(stack: Stack, place: PrefillPlace, apart: bool) -> None:
    [one] = BEFORE.models
    routing = RoutingSpec("prefix_and_load", {"prefix": 2.0}, place)
    await told(stack, replace(BEFORE, models=(replace(one, routing=routing),)))
    response = await stack.http.post("/v1/completions", json={**PROMPT, "model": "m"})
    assert ("x-segue-prefill" in response.headers) is apart


async def test_a_model_that_gets_a_target_refuses_by_it_from_then_on(stack: Stack) -> None:
    [one] = BEFORE.models
    sessions = stack.gateway.driver._brain._sessions
    assert sessions._most_wait("m", None, 0.0, 10) == BEFORE.gateway.queue_seconds
    await told(stack, replace(BEFORE, models=(replace(one, slo=SloSpec(ttft_ms=1500.0)),)))
    assert sessions._most_wait("m", None, 0.0, 10) == 1.5
    await told(stack, BEFORE)
    assert sessions._most_wait("m", None, 0.0, 10) == BEFORE.gateway.queue_seconds


async def test_what_one_worker_says_that_it_can_do_is_not_what_the_model_does(stack: Stack) -> None:
    """Nor does a front end that was opened by its word stay so."""
    front = stack.gateway.front("m")
    await front.open(("embed",), 512)
    assert "/v1/completions" not in front.paths
    async with asyncio.timeout(20):
        while "/v1/completions" not in stack.gateway.front("m").paths:
            await stack.gateway.status_changed(0.2)
    response = await stack.http.post("/v1/completions", json={**PROMPT, "model": "m"})
    assert response.status_code == 200


async def test_a_longer_context_is_offered_once_there_are_engines_for_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "REFIT_SECONDS", 0.1)
    [one] = BEFORE.models
    longer: dict[str, Any] = {"max_model_len": 1024, "block_size": 16}
    pools = {role: replace(pool, engine=longer) for role, pool in one.pools.items()}
    await told(stack, replace(BEFORE, models=(replace(one, pools=pools),)))
    assert stack.gateway.front("m").max_model_len == 512
    async with mock_worker(Role.DECODE, "m", worker_id="m-decode-1", **longer) as worker:
        stack.controller.add("m", Role.DECODE, "m-decode-1", worker.address)
        async with asyncio.timeout(20):
            while stack.gateway.front("m").max_model_len != 1024:
                await stack.gateway.status_changed(0.2)
        stack.controller.remove("m-decode-1")
        async with asyncio.timeout(20):
            while stack.gateway.front("m").max_model_len != 512:
                await stack.gateway.status_changed(0.2)
