"""One cluster in this process for the tests of a module, whole and checked after each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.chaos.rig import Rig, rig


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


@pytest_asyncio.fixture
async def whole(shared: Rig) -> AsyncIterator[Rig]:
    shared.taken.clear()
    yield shared
    await shared.checked()
