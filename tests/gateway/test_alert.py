"""Caches that are not what the gateway takes them for: said once, loudly, with a cause, and taken back when over."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from orchestrator.core.mirror import CacheNews
from orchestrator.core.spec import Role
from orchestrator.gateway import driver as driver_module
from orchestrator.gateway.hashing import Request, blocks_of
from tests.gateway.heard import listen
from tests.gateway.support import Stack, cluster, model, running

SPEC = cluster(model("m", "tiny:llama", Role.SERVE))
ALERT = 'segue_alert{gateway="gw-0",kind="prefix_prediction",model="m"}'


def lose_events(stack: Stack, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stack.workers["m-serve-0"].session, "_cache_news", lambda _: CacheNews())


def hash_other_blocks(stack: Stack, patch: pytest.MonkeyPatch) -> None:
    def half(request: Request, name: str, size: int) -> object:
        return blocks_of(request, name, size // 2)

    patch.setattr(driver_module, "blocks_of", half)


def hash_other_tokens(stack: Stack, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(driver_module, "blocks_of", lambda request, name, size: blocks_of(request, f"not {name}", size))


def lose_what_was_told(stack: Stack, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stack.workers["m-serve-0"].engine._pool, "_caching", False)


@pytest.mark.parametrize(
    ("break_it", "cause"),
    [
        (lose_events, "KV events are lost"),
        (hash_other_blocks, "block size"),
        (hash_other_tokens, "tokenizer"),
        (lose_what_was_told, "find less than they said"),
    ],
)
async def test_one_warning_and_a_gauge_and_both_are_over(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Stack, pytest.MonkeyPatch], None],
    cause: str,
) -> None:
    caplog.set_level(logging.INFO, "segue")
    async with running(SPEC) as stack:
        heard = listen(monkeypatch)

        async def ask(first: int) -> None:
            prompts = [[document, *range(50, 149)] for document in range(first, first + 50)]
            body = {"model": "m", "prompt": prompts, "max_tokens": 1}
            assert (await stack.http.post("/v1/completions", json=body)).status_code == 200

        async def gauge() -> list[str]:
            return [line for line in (await stack.http.get("/metrics")).text.splitlines() if line.startswith(ALERT)]

        for _ in range(2):
            await ask(1)
        assert await gauge() == []
        with monkeypatch.context() as patch:
            break_it(stack, patch)
            for first in (1, 51, 51):
                await ask(first)
            assert await gauge() == [f"{ALERT} 1.0"]
        for first in range(101, 351, 50):
            await ask(first)
        assert await gauge() == [f"{ALERT} 0.0"]
        await stack.quiet()
    said = [line for line in heard.getvalue().splitlines() if "prefix_prediction" in line]
    warnings = [line for line in said if " warning " in line]
    assert len(warnings) == 1
    assert cause in warnings[0]
    assert len(said) == 2, "one more word, when it is over"
