"""A gateway that is recorded: what its brain did can be done again, and told, without a word that a client wrote."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from orchestrator.core.errors import SegueError
from orchestrator.core.spec import ClusterSpec, Role
from orchestrator.core.types import GatewayAssignment
from orchestrator.gateway.serving import Serving
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc
from orchestrator.record.lookup import look_up
from orchestrator.record.recording import Recording, Step
from orchestrator.record.replay import Replayed, replay
from orchestrator.record.story import RequestStory, What
from tests.gateway.support import Stack, cluster, model, running
from tests.workers.support import mock_worker

WORDS = "confidential marmalade for zebras"
ENGINES = {"block_size": 16, "max_model_len": 512, "step_seconds": 0.02}


def spec(**over: Any) -> ClusterSpec:
    return cluster(model("m", "tiny:llama", Role.PREFILL, Role.DECODE), queue_seconds=1.0, **over)


async def ask(stack: Stack, headers: dict[str, str] | None = None, **over: Any) -> httpx.Response:
    body = {"model": "m", "prompt": f"{WORDS} {over.pop('more', '')}", "max_tokens": 6, "ignore_eos": True, **over}
    return await stack.http.post("/v1/completions", json=body, headers=headers)


async def left_in_mid_stream(stack: Stack, request_id: str) -> None:
    body = {"model": "m", "prompt": WORDS, "max_tokens": 300, "ignore_eos": True, "stream": True}
    headers = {"x-request-id": request_id}
    async with stack.http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                return


def replayed(path: Path) -> Replayed:
    with Recording(path) as recording:
        return replay(recording)


def kinds(path: Path) -> set[str]:
    with Recording(path) as recording:
        steps = [line for line in recording.lines() if isinstance(line, Step)]
    return {step.kind for step in steps} | {next(iter(command)) for step in steps for command in step.commands}


def story_of(path: Path, asked: str) -> RequestStory:
    with Recording(path) as recording:
        (story,) = look_up(recording, asked).stories
    return story


async def test_traffic_with_losses_replays_to_the_same_commands_and_has_no_words_in_it(tmp_path: Path) -> None:
    path = tmp_path / "r"
    async with running(spec(), record=str(path), step_seconds=0.02) as stack:
        async with mock_worker(Role.DECODE, "m", worker_id="m-decode-1", **ENGINES) as second:
            stack.controller.add("m", Role.DECODE, "m-decode-1", second.address)
            async with asyncio.timeout(10):
                while stack.gateway.driver.load("m-decode-1") is None:
                    await stack.gateway.status_changed(0.1)
            assert {answer.status_code for answer in await asyncio.gather(*(ask(stack) for _ in range(4)))} == {200}
            assert (await ask(stack, n=2, temperature=0.9)).status_code == 200
            assert (await ask(stack, prompt=[WORDS, "xylophone " * 30], stream=False)).status_code == 200
            await left_in_mid_stream(stack, "who-left")
            late = asyncio.create_task(ask(stack, more="walrus", max_tokens=40))
            async with asyncio.timeout(10):
                while not stack._busy("m-decode-0") and not stack._busy("m-decode-1"):
                    await stack.gateway.status_changed(0.05)
        await stack.workers["m-prefill-0"].server.stop(None)
        assert (await asyncio.wait_for(late, 20)).status_code in (200, 503)
        assert (await ask(stack, {"x-request-id": "the-last"})).status_code == 200
        stack.controller.remove("m-decode-0")
        assert (await asyncio.wait_for(ask(stack), 20)).status_code == 503
    outcome = replayed(path)
    assert outcome.difference is None, outcome.difference
    assert (outcome.end, outcome.header.gateway, outcome.header.epoch) == ("closed", "gw-0", 1)
    assert {
        "WorkerUp",
        "WorkerDown",
        "LoadReported",
        "CacheChanged",
        "Arrived",
        "PrefillEnded",
        "FirstToken",
        "Cancelled",
        "Tick",
    } <= (happened := kinds(path))
    assert {"StartPrefill", "StartDecode", "Abort", "End"} <= happened
    text = path.read_text()
    assert '"blocks":' in text
    for word in ("confidential", "marmalade", "zebra", "xylophone", "walrus"):
        assert word not in text, word
    assert What.ABORTED in [moment.what for moment in story_of(path, "who-left").moments]
    assert story_of(path, "the-last").outcome is not None


async def test_the_live_gateway_tells_the_story_by_any_id_that_a_client_has_seen() -> None:
    async with running(spec()) as stack:
        answer = await ask(stack, {"x-request-id": "mine"}, n=2, temperature=0.9)
        unnamed = await ask(stack)
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
            call = inference_pb2_grpc.InferenceStub(channel).Generate(
                inference_pb2.GenerateRequest(model="m", text=WORDS, request_id="job-7")
            )
            assert [message async for message in call]
            explain = cluster_pb2_grpc.ClusterStub(channel).Explain

            async def ids(asked: str) -> list[str]:
                found = await explain(cluster_pb2.ExplainRequest(request_id=asked))
                assert found.gateway == "gw-0"
                assert all(story.gateway == "gw-0" and story.outcome.outcome for story in found.stories)
                return [story.request_id for story in found.stories]

            both = await ids("mine")
            assert len(both) == 2
            assert await ids(answer.json()["id"]) == both
            assert await ids(both[0]) == both[:1]
            one = await ids(unnamed.json()["id"])
            assert len(one) == 1
            assert await ids(unnamed.headers["x-request-id"]) == one
            assert len(await ids("job-7")) == 1
            assert await ids("nobody") == []


async def test_a_gateway_that_cannot_record_does_not_come_up(tmp_path: Path) -> None:
    order = GatewayAssignment("test", "gw-0", 1, "127.0.0.1:1", record=str(tmp_path / "nowhere" / "r"))
    with pytest.raises(SegueError, match="the recording can't be written"):
        Serving(order, spec())


def test_the_header_says_under_what_it_was_made(tmp_path: Path) -> None:
    """Enough to build the same brain again, in another process, without the configuration at hand."""
    from orchestrator.gateway.gateway import Gateway

    gateway = Gateway("gw-0", spec(), seed=11, record=str(tmp_path / "r"), epoch=4)
    gateway._journal.close()
    first = json.loads((tmp_path / "r").read_text().splitlines()[0])
    assert (first["seed"], first["epoch"], first["spec"]["gateway"]["queue_seconds"]) == (11, 4, 1.0)
    assert replayed(tmp_path / "r").difference is None
