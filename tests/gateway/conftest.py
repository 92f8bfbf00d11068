from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from orchestrator.core.spec import Role
from tests.gateway.crowd import LIMITS
from tests.gateway.support import Stack, cluster, model, running


@pytest_asyncio.fixture(scope="package")
async def shared_stack() -> AsyncIterator[Stack]:
    """One model apart, one together, both with the tiny model's tokenizer."""
    spec = cluster(
        model(
            "apart", "tiny:llama", Role.PREFILL, Role.DECODE, enable_auto_tool_choice=True, tool_call_parser="hermes"
        ),
        model("together", "tiny:llama", Role.SERVE),
        max_body_bytes=1 << 20,
    )
    async with running(spec) as stack:
        yield stack


@pytest_asyncio.fixture
async def stack(shared_stack: Stack) -> AsyncIterator[Stack]:
    """The shared gateway, which must be quiet again after each test."""
    await shared_stack.ready()
    yield shared_stack
    await shared_stack.quiet()


@pytest_asyncio.fixture(scope="package")
async def shared_narrow_stack() -> AsyncIterator[Stack]:
    spec = cluster(model("m", "tiny:llama", Role.SERVE), admission=LIMITS)
    async with running(spec, max_num_seqs=1, step_seconds=0.02) as stack:
        yield stack


@pytest_asyncio.fixture
async def narrow(shared_narrow_stack: Stack) -> AsyncIterator[Stack]:
    """One worker that takes two requests at a time, in front of it a queue for four."""
    yield shared_narrow_stack
    await shared_narrow_stack.quiet()
