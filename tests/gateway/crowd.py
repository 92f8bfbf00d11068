"""A worker with two seats, requests that take them, and a crowd that waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx

from orchestrator.core.spec import AdmissionSpec, TenantSpec
from tests.gateway.support import Stack

TURNS = {"model": "m", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 2}
TEXT = {"model": "m", "prompt": "Hello there", "max_tokens": 2}
ASKED = {"model": "m", "input": "Hello there", "max_output_tokens": 2}
ROUTES = {
    "/v1/chat/completions": TURNS,
    "/v1/completions": TEXT,
    "/v1/responses": ASKED,
    "/v1/messages": TURNS,
}
LIMITS = AdmissionSpec(
    max_queued_requests=4,
    tenants={
        "small": TenantSpec(max_queued_requests=1),
        "large": TenantSpec(max_queued_tokens=3),
        "gold": TenantSpec(),
    },
)


def queue(stack: Stack) -> Any:
    return stack.gateway.driver._brain.admission


async def until(stack: Stack, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await stack.gateway.status_changed(0.005)


async def until_queued(stack: Stack, count: int) -> None:
    await until(stack, lambda: len(queue(stack)) == count)


@asynccontextmanager
async def occupied(stack: Stack) -> AsyncIterator[None]:
    """Within it, the one worker has as many requests as it takes, and they last."""
    endless = {**TEXT, "max_tokens": 500, "ignore_eos": True}
    seated = [asyncio.create_task(stack.http.post("/v1/completions", json=endless)) for _ in range(2)]
    try:
        await until(stack, lambda: stack.gateway.driver._brain.live == len(seated))
        assert not len(queue(stack))
        yield
    finally:
        for task in seated:
            task.cancel()
        await asyncio.gather(*seated, return_exceptions=True)


@contextmanager
def placements(stack: Stack) -> Iterator[list[str]]:
    """The internal ids of those that waited, as they are sent to the worker. They have a client's own id in them."""
    placed: list[str] = []
    admitted = queue(stack).admitted

    def note(request_id: str, now: float) -> None:
        placed.append(request_id)
        admitted(request_id, now)

    queue(stack).admitted = note
    try:
        yield placed
    finally:
        del queue(stack).admitted


def names(placed: list[str], known: Iterable[str]) -> list[str]:
    return [next(name for name in known if name in request_id) for request_id in placed]


class Crowd:
    """Requests that wait, each under a name of its own."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.answered: list[str] = []
        self.tasks: list[asyncio.Task[httpx.Response]] = []

    async def joins(self, name: str, tenant: str = "", path: str = "/v1/completions", **over: Any) -> None:
        """Returns once it waits, or was answered at once."""
        before = len(queue(self._stack)), len(self.answered)
        headers = {"x-request-id": name, **({"x-segue-tenant": tenant} if tenant else {}), **over.pop("headers", {})}
        self.tasks.append(asyncio.create_task(self._ask(name, path, {**ROUTES[path], **over}, headers)))
        await until(self._stack, lambda: (len(queue(self._stack)), len(self.answered)) != before)

    async def _ask(self, name: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
        response = await self._stack.http.post(path, json=body, headers=headers)
        self.answered.append(name)
        return response

    async def all(self) -> list[httpx.Response]:
        return await asyncio.wait_for(asyncio.gather(*self.tasks), 20)


async def full(stack: Stack, tenant: str = "flood") -> Crowd:
    crowd = Crowd(stack)
    for i in range(LIMITS.max_queued_requests):
        await crowd.joins(f"{tenant}{i}", tenant)
    assert len(queue(stack)) == LIMITS.max_queued_requests
    return crowd
