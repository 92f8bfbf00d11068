from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.rpc.fake import Edge, serving


@pytest_asyncio.fixture(loop_scope="session")
async def edge() -> AsyncIterator[Edge]:
    """The gRPC services over a scripted engine."""
    async with serving() as running:
        yield running
