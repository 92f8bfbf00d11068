from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from orchestrator.core.spec import Role
from tests.gateway.support import Stack, cluster, model, running
from tests.rpc.fake import Edge, serving

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest_asyncio.fixture(loop_scope="session")
async def edge() -> AsyncIterator[Edge]:
    """The gRPC services over a scripted engine."""
    async with serving() as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def shared() -> AsyncIterator[Stack]:
    """A whole gateway over mock workers: a model in halves, and one whose HTTP side parses tool calls."""
    parsing = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes", "chat_template": TEMPLATE}
    spec = cluster(
        model("m", "tiny:llama", Role.PREFILL, Role.DECODE, chat_template=TEMPLATE),
        model("parsing", "tiny:llama", Role.SERVE, **parsing),
    )
    async with running(spec, step_seconds=0.002) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def stack(shared: Stack) -> AsyncIterator[Stack]:
    yield shared
    await shared.quiet()
