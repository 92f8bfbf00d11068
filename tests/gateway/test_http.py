"""What an HTTP client sees, good and bad, with mock workers behind the real gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from orchestrator.core.spec import Role
from tests.gateway.support import Stack, cluster, model, names, running
from tests.workers.clock import StepClock

CHAT = {"model": "apart", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 6}


def chat(**over: Any) -> dict[str, Any]:
    return {**CHAT, **over}


async def events(response: httpx.Response) -> list[str]:
    return [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]


async def keep_going(clock: StepClock) -> None:
    while True:
        await clock.advance()


class TestAnswers:
    async def test_lists_all_models_without_naming_folders(self, stack: Stack) -> None:
        listing = (await stack.http.get("/v1/models")).json()
        assert names(listing["data"]) == {"apart", "together"}
        assert {card["root"] for card in listing["data"]} == {"tiny:llama"}
        assert (await stack.http.get("/v1/models/apart")).json()["id"] == "apart"

    async def test_chat_says_where_its_halves_ran(self, stack: Stack) -> None:
        response = await stack.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
        assert response.status_code == 200
        assert response.json()["usage"]["completion_tokens"] == 6
        assert response.headers["x-segue-prefill"] == "apart-prefill-0"
        assert response.headers["x-segue-decode"] == "apart-decode-0"
        assert response.headers["x-request-id"] == "mine"

    async def test_streamed_text_equals_the_whole(self, stack: Stack) -> None:
        whole = (await stack.http.post("/v1/chat/completions", json=CHAT)).json()["choices"][0]["message"]["content"]
        async with stack.http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
            lines = await events(response)
        assert lines[-1] == "[DONE]"
        deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
        assert "".join(deltas) == whole

    async def test_each_model_answers_as_itself(self, stack: Stack) -> None:
        body = {"prompt": "once upon a time", "max_tokens": 4}
        for name in ("apart", "together"):
            answer = (await stack.http.post("/v1/completions", json={"model": name, **body})).json()
            assert answer["model"] == name

    async def test_n_sequences_and_usage_in_the_stream(self, stack: Stack) -> None:
        body = chat(stream=True, n=2, stream_options={"include_usage": True})
        async with stack.http.stream("POST", "/v1/chat/completions", json=body) as response:
            chunks = [json.loads(line) for line in (await events(response))[:-1]]
        assert {choice["index"] for chunk in chunks for choice in chunk["choices"]} == {0, 1}
        assert chunks[-1]["usage"]["completion_tokens"] == 12

    async def test_moved_tokens_are_not_passed_off_as_cached(self, stack: Stack) -> None:
        fresh = "never seen before " + "x y z " * 30
        usage = (await stack.http.post("/v1/completions", json={"model": "apart", "prompt": fresh})).json()["usage"]
        assert usage["prompt_tokens"] > 64
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0

    async def test_responses_messages_and_tokenize(self, stack: Stack) -> None:
        response = await stack.http.post(
            "/v1/responses", json={"model": "apart", "input": "hi", "max_output_tokens": 4}
        )
        assert response.json()["status"] in ("completed", "incomplete")
        anthropic = {"model": "apart", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
        message = (await stack.http.post("/v1/messages", json=anthropic)).json()
        assert (message["type"], message["usage"]["output_tokens"]) == ("message", 4)
        tokens = (await stack.http.post("/tokenize", json={"model": "apart", "prompt": "hi there"})).json()["tokens"]
        text = (await stack.http.post("/detokenize", json={"model": "apart", "tokens": tokens})).json()["prompt"]
        assert text == "hi there"


class TestRefusals:
    """OpenAI's error body, the right status, and nothing lost."""

    @pytest.mark.parametrize(
        ("path", "content", "status"),
        [
            ("/v1/chat/completions", b"{not json", 400),
            ("/v1/chat/completions", b"[]", 400),
            ("/v1/chat/completions", b'{"model": 5, "messages": []}', 400),
            ("/v1/chat/completions", b'{"messages": []}', 400),  # two models: which one?
            ("/v1/chat/completions", json.dumps(chat(model="nope")).encode(), 404),
            ("/v1/chat/completions", json.dumps(chat(temperature="hot")).encode(), 400),
            ("/v1/chat/completions", json.dumps(chat(messages="hi")).encode(), 400),
            ("/v1/chat/completions", json.dumps(chat(max_tokens=-1)).encode(), 400),
            ("/v1/completions", json.dumps({"model": "apart", "prompt": "a b c " * 600}).encode(), 400),
            ("/v1/completions", json.dumps({"model": "apart", "prompt": [10**9]}).encode(), 400),
            ("/v1/embeddings", json.dumps({"model": "apart", "input": "hi"}).encode(), 400),
            ("/v1/chat/completions", b" " * ((1 << 20) + 1), 413),
            ("/v1/nothing", b"{}", 404),
        ],
    )
    async def test_bad_requests(self, stack: Stack, path: str, content: bytes, status: int) -> None:
        response = await stack.http.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert error["message"]
        assert {"message", "type", "param", "code"} <= set(error)

    async def test_anthropic_clients_get_their_own_shape(self, stack: Stack) -> None:
        response = await stack.http.post("/v1/messages", json={"model": "nope", "max_tokens": 4, "messages": []})
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"

    @pytest.mark.parametrize("value", [{"remote_host": "10.0.0.1", "remote_port": 1}, {}, "x", 1, ["x"]])
    @pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params", "segue_anything"])
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
    async def test_client_may_not_choose_where_kv_is_pulled_from(
        self, stack: Stack, path: str, name: str, value: Any
    ) -> None:
        field = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")
        said = [{"role": "user", "content": "hi"}] if field == "messages" else "hi"
        asked = {"model": "apart", field: said}
        bodies = [{**asked, "vllm_xargs": {name: value}}]
        if isinstance(value, dict) and value and not name.startswith("segue_"):  # vLLM takes no notice of an empty one
            bodies.append({**asked, name: value})
        for body in bodies:
            response = await stack.http.post(path, json=body)
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert name in error["message"] or "vllm_xargs" in error["message"]


class TestLife:
    async def test_disconnect_aborts_within_a_step(self) -> None:
        """The engine's clock stands still once the client has left: a request that is to end may not need a step."""
        clock = StepClock()
        async with running(cluster(model("m", "tiny:llama", Role.SERVE)), clock=clock) as own:
            engine = own.workers["m-serve-0"].engine
            body = {"model": "m", "prompt": "hello", "stream": True, "max_tokens": 400, "ignore_eos": True}
            ticking = asyncio.create_task(keep_going(clock))
            async with own.http.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                await anext(lines)
                ticking.cancel()
                await asyncio.gather(ticking, return_exceptions=True)
                assert engine.load.running == 1
            async with asyncio.timeout(10):
                while engine.load.running or engine.load.kv_blocks_used:
                    await own.gateway.status_changed(0.01)
            await own.quiet()

    async def test_two_hundred_aborts_at_random_moments_leave_nothing(self, stack: Stack) -> None:
        async def one(index: int) -> None:
            body = chat(messages=[{"role": "user", "content": f"{index} " * 40}], max_tokens=200, ignore_eos=True)
            task = asyncio.create_task(stack.http.post("/v1/chat/completions", json=body))
            await asyncio.sleep((index % 37) * 0.004)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        await asyncio.gather(*(one(i) for i in range(200)))
        await stack.quiet()

    async def test_metrics_name_model_pool_and_worker(self, stack: Stack) -> None:
        await stack.http.post("/v1/chat/completions", json=CHAT)
        text = (await stack.http.get("/metrics")).text
        assert 'segue_requests_total{gateway="gw-0",model="apart",outcome="finished"}' in text
        assert 'worker="apart-decode-0"' in text
        assert "segue_kv_transfer_bytes_total" in text

    async def test_ready_and_health(self, stack: Stack) -> None:
        assert (await stack.http.get("/health")).status_code == 200
        ready = await stack.http.get("/ready")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
