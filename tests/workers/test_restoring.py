"""An engine that goes on with what another one began makes the tokens that the first would have made."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from orchestrator.core.types import SENT_TOKENS
from orchestrator.proto.worker_pb2 import Submit
from tests.workers.support import TINY_ENGINE, Gateway, WorkerProcess, engine_process, gateway, make_request, tokens
from workers import wire

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

PROMPT = list(range(100, 140))
TOKENS = 24
_numbers = itertools.count()


def asked(
    wire_id: str, sent: list[int], params: dict[str, Any], private: dict[str, Any], prompt: Sequence[int] = PROMPT
) -> wire.Request:
    params = {"max_tokens": TOKENS, **params}
    if sent:
        params["extra_args"] = {SENT_TOKENS: sent}
    request = make_request(wire_id, prompt, **params)
    for name, value in private.items():
        setattr(request.sampling_params, name, value)
    return request


async def said(peer: Gateway, request: wire.Request) -> list[int]:
    parts = wire.encode_request(request)
    await peer.send(submit=Submit(wire_id=request.request_id, request=parts, trace={}))
    return tokens(await peer.finished(request.request_id, 60))


def grammar() -> StructuredOutputsParams:
    chosen = StructuredOutputsParams(regex=r"(ab[0-9]{3}, )+end")
    chosen._backend = "xgrammar"
    return chosen


async def greedy(peer: Gateway) -> list[int]:
    return await said(peer, asked("plain", [], {}, {}))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("greedy", {}),
        ("seed", {"temperature": 1.0, "seed": 11}),
        ("seed and top-p", {"temperature": 1.5, "seed": 5, "top_p": 0.9, "top_k": 200}),
        ("presence", {"presence_penalty": 1.9}),
        ("frequency", {"frequency_penalty": 1.9, "presence_penalty": -1.0}),
        ("repetition", {"repetition_penalty": 1.8}),
        ("grammar", {"temperature": 1.0, "seed": 3, "structured_outputs": grammar, "ignore_eos": False}),
        ("min tokens", {"min_tokens": 20, "temperature": 2.0, "seed": 9}),
        ("bad words", {}),
    ],
)
async def test_what_depends_on_the_output_so_far_goes_on(
    engines: tuple[WorkerProcess, WorkerProcess], name: str, params: dict[str, Any]
) -> None:
    assert engines[1].snapshot["facts"]["restores"]
    private: dict[str, Any] = {}
    async with gateway(engines[1].address) as peer:
        if name == "bad words":
            usual = await greedy(peer)
            private = {"_bad_words_token_ids": [usual[1:3], usual[6:9]]}
        params = {key: value() if callable(value) else value for key, value in params.items()}
        whole = await said(peer, asked(f"{name} whole", [], params, private))
        assert len(whole) > 9
        for count in (1, 2, 7, len(whole) - 1):
            rest = await said(peer, asked(f"{name} {count}", whole[:count], params, private))
            assert whole[:count] + rest == whole, f"after {count} tokens"


async def test_without_the_word_it_would_not(engines: tuple[WorkerProcess, WorkerProcess]) -> None:
    """What is restored makes a difference: the same longer prompt alone gives other tokens."""
    params = {"temperature": 1.0, "seed": 11}
    async with gateway(engines[1].address) as peer:
        whole = await said(peer, asked("with", [], params, {}))
        again = make_request("without", [*PROMPT, *whole[:7]], max_tokens=TOKENS - 7, **params)
        assert await said(peer, again) != whole[7:]


async def test_it_goes_on_where_what_was_sent_is_cached_already(engines: tuple[WorkerProcess, WorkerProcess]) -> None:
    """On the engine that made it, whose session broke and opened again; or beside one that was sent the same."""
    params: dict[str, Any] = {"max_tokens": 3 * TOKENS, "temperature": 1.0, "seed": 21}
    async with gateway(engines[1].address) as peer:
        size = engines[1].snapshot["facts"]["block_size"]
        whole = await said(peer, asked("cached whole", [], params, {}))
        count = 2 * size
        assert len(whole) > count
        rest = await said(peer, asked("cached rest", whole[:count], params, {}))
        assert whole[:count] + rest == whole


@pytest.mark.parametrize("sent", [7, "ab", [1, "2"], [-1], [1 << 40], [5] * TOKENS, [5] * 600, [True]])
async def test_sent_tokens_that_can_not_be_are_an_error_and_no_effect(
    engines: tuple[WorkerProcess, WorkerProcess], sent: Any
) -> None:
    request = make_request("odd", PROMPT, max_tokens=TOKENS, extra_args={SENT_TOKENS: sent})
    async with gateway(engines[1].address) as peer:
        await peer.send(submit=Submit(wire_id="odd", request=wire.encode_request(request)))
        await peer.until(lambda each: "odd" in each.rejected)
        assert len(await greedy(peer)) == TOKENS


async def test_prompts_in_chunks_leave_a_seed_where_it_was(tmp_path: Path) -> None:
    """On CPUs vLLM can't take a draw back, and dies of it."""
    engine = {**TINY_ENGINE, "max_num_batched_tokens": 64}
    params: dict[str, Any] = {"temperature": 1.0, "seed": 11}
    with engine_process("decode", tmp_path, engine=engine) as process:
        async with gateway(process.ready().address) as peer:
            whole = await said(peer, asked("chunks", [], params, {}, [*range(100, 300)]))
            rest = await said(peer, asked("chunks again", whole[:9], params, {}, [*range(100, 300)]))
            assert whole[:9] + rest == whole


@pytest.mark.parametrize("length", [40, 64])
async def test_what_is_handed_over_is_the_prompt_and_the_rest_is_computed(
    engines: tuple[WorkerProcess, WorkerProcess], length: int
) -> None:
    """A block that the prompt fills in part, or whole ones; and then where all of it is cached already."""
    params: dict[str, Any] = {"max_tokens": 3 * TOKENS, "temperature": 1.0, "seed": 4}
    prompt = [*range(5000 + length, 5000 + 2 * length)]
    async with gateway(engines[0].address) as first, gateway(engines[1].address) as second:
        whole = await said(first, asked(f"apart whole {length}", [], params, {}, prompt))
        for count in (5, 50, 50):
            transfer = await first.prefill(f"apart p {next(_numbers)}", prompt)
            request = asked(f"apart d {next(_numbers)}", whole[:count], params, {}, prompt)
            assert request.sampling_params is not None
            request.sampling_params.extra_args = {SENT_TOKENS: whole[:count], "kv_transfer_params": transfer}
            assert whole[:count] + await said(second, request) == whole, count
        await first.until(lambda each: not each.load.kv_blocks_used)


async def test_what_a_grammar_does_not_take_is_an_error_and_no_wait(
    engines: tuple[WorkerProcess, WorkerProcess],
) -> None:
    request = asked("no grammar", [5, 6, 7], {"structured_outputs": grammar()}, {})
    async with gateway(engines[1].address) as peer:
        await peer.send(submit=Submit(wire_id="no grammar", request=wire.encode_request(request)))
        outputs = await peer.finished("no grammar", 20)
        assert (outputs[-1].finish_reason, tokens(outputs)) == (wire.Finish.ERROR, [])
        assert len(await greedy(peer)) == TOKENS
