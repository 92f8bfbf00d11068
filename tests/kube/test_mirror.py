"""A kept list of objects: nothing is missed and nothing is told twice, whatever becomes of its watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from orchestrator.controller.kube.mirror import Mirror
from orchestrator.controller.kube.ports import Kind, KubeForbidden, KubeUnreachable
from orchestrator.telemetry import logs
from tests.kube.emulator.server import LostError, Server
from tests.kube.fake import FakeKube
from tests.kube.test_client_contract import SOON, a_map, client_of


class Sleeper:
    """Time that passes only when it is asked to; ``slept`` has every pause."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._more = asyncio.Event()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self._more.set()
        await asyncio.sleep(0)

    async def until(self, count: int) -> None:
        """Until there were so many pauses that are any."""
        async with asyncio.timeout(SOON):
            while len([each for each in self.slept if each]) < count:
                self._more.clear()
                await self._more.wait()


class Watched:
    """A mirror, and a way to wait for what it holds."""

    def __init__(self, mirror: Mirror, changed: asyncio.Event) -> None:
        self.mirror = mirror
        self._changed = changed

    async def until(self, there: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON):
            while not there():
                self._changed.clear()
                await self._changed.wait()

    def held(self) -> dict[str, str]:
        return {each["metadata"]["name"]: each["data"]["a"] for each in self.mirror.items}


@asynccontextmanager
async def kept(kube: Any, selector: str = "", **times: Any) -> AsyncIterator[Watched]:
    changed = asyncio.Event()
    mirror = Mirror(kube, Kind.CONFIGMAPS, selector, changed=changed.set, jitter=lambda: 1.0, **times)
    task = asyncio.create_task(mirror.run())
    try:
        yield Watched(mirror, changed)
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    return Sleeper()


def timed(sleeper: Sleeper) -> dict[str, Any]:
    return {"clock": sleeper, "sleep": sleeper.sleep}


async def test_it_follows_what_is_made_changed_and_removed() -> None:
    kube = FakeKube()
    await kube.create(Kind.CONFIGMAPS, a_map("one"))
    async with kept(kube) as it:
        assert await it.mirror.fresh(SOON)
        assert it.held() == {"one": "x"}
        made = await kube.create(Kind.CONFIGMAPS, a_map("two"))
        await kube.replace(Kind.CONFIGMAPS, {**made, "data": {"a": "y"}})
        await kube.delete(Kind.CONFIGMAPS, "one")
        await it.until(lambda: it.held() == {"two": "y"})
    assert kube.calls.count("list configmaps") == 1


async def test_what_happens_between_list_and_watch_is_not_missed() -> None:
    kube = FakeKube()
    gate = kube.gate("watch configmaps")
    async with kept(kube) as it:
        async with asyncio.timeout(SOON):
            await gate.reached.wait()
        await kube.create(Kind.CONFIGMAPS, a_map("one"))
        assert it.held() == {}
        gate.open.set()
        await it.until(lambda: it.held() == {"one": "x"})


async def test_a_watch_that_ended_goes_on_from_where_it_was(sleeper: Sleeper) -> None:
    kube = FakeKube()
    async with kept(kube, **timed(sleeper)) as it:
        await it.mirror.fresh(SOON)
        await kube.create(Kind.CONFIGMAPS, a_map("one"))
        await it.until(lambda: "one" in it.held())
        gate = kube.gate("watch configmaps")
        await kube.end_watches()
        async with asyncio.timeout(SOON):
            await gate.reached.wait()
        await kube.create(Kind.CONFIGMAPS, a_map("two"))
        gate.open.set()
        await it.until(lambda: "two" in it.held())
    assert kube.calls.count("list configmaps") == 1, "a watch that ends is ordinary"
    assert kube.calls.count("watch configmaps") == 2


async def test_after_too_long_it_is_listed_anew_and_what_went_meanwhile_is_gone(sleeper: Sleeper) -> None:
    kube = FakeKube()
    await kube.create(Kind.CONFIGMAPS, a_map("one"))
    async with kept(kube, **timed(sleeper)) as it:
        await it.until(lambda: "one" in it.held())
        gate = kube.gate("watch configmaps")
        await kube.end_watches()
        async with asyncio.timeout(SOON):
            await gate.reached.wait()
        await kube.delete(Kind.CONFIGMAPS, "one")
        await kube.create(Kind.CONFIGMAPS, a_map("two"))
        kube.forget()
        gate.open.set()
        await it.until(lambda: it.held() == {"two": "x"})
    assert kube.calls.count("list configmaps") == 2


async def test_while_the_server_is_away_it_keeps_what_it_has_and_asks_ever_more_seldom(sleeper: Sleeper) -> None:
    kube = FakeKube()
    await kube.create(Kind.CONFIGMAPS, a_map("one"))
    async with kept(kube, **timed(sleeper)) as it:
        await it.until(lambda: "one" in it.held())
        kube.trouble = lambda call: KubeUnreachable("away")
        await kube.end_watches(KubeUnreachable("away"))
        await sleeper.until(10)
        assert it.held() == {"one": "x"}
        assert isinstance(it.mirror.error, KubeUnreachable)
        assert sleeper.slept[:4] == [0.5, 1.0, 2.0, 4.0]
        assert sleeper.slept[9] == 30.0, "not more seldom than that either"
        kube.trouble = lambda call: None
        await kube.create(Kind.CONFIGMAPS, a_map("two"))
        await it.until(lambda: "two" in it.held())
        assert it.mirror.error is None


async def test_it_comes_again_no_sooner_than_it_is_asked_to(sleeper: Sleeper) -> None:
    kube = FakeKube()
    kube.trouble = lambda call: KubeUnreachable("busy", retry_after=12.0) if len(kube.calls) < 3 else None
    async with kept(kube, **timed(sleeper)) as it:
        await it.until(lambda: bool(sleeper.slept) or it.mirror.error is None)
        assert await it.mirror.fresh(SOON)
    assert sleeper.slept[:2] == [12.0, 12.0]


async def test_a_right_that_is_missing_is_said_once_and_asked_for_seldom(
    sleeper: Sleeper, caplog: pytest.LogCaptureFixture
) -> None:
    logs.setup("info")
    kube = FakeKube()
    kube.trouble = lambda call: KubeForbidden("r may not list configmaps")
    async with kept(kube, **timed(sleeper)) as it:
        await sleeper.until(5)
        assert isinstance(it.mirror.error, KubeForbidden)
        assert not await it.mirror.fresh(0)
    assert set(sleeper.slept) == {300.0}
    assert len([each for each in caplog.records if each.msg == "kubernetes_failed"]) == 1


async def test_a_server_that_forgets_at_once_is_not_asked_in_a_loop(sleeper: Sleeper) -> None:
    kube = FakeKube()
    kube._oldest = 10**9  # every watch has expired
    async with kept(kube, **timed(sleeper)):
        await sleeper.until(4)
    assert [each for each in sleeper.slept if each][:3] == [1.0, 2.0, 3.0]


Trouble = Callable[[Server], Awaitable[None]]


async def ended(server: Server) -> None:
    server.end_watches()


async def broken(server: Server) -> None:
    server.end_watches(dropping=True)


async def all_connections_broken(server: Server) -> None:
    server.drop_all()


async def forgotten(server: Server) -> None:
    """Ended, and the next one comes too late."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(method: str, path: str) -> None:
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(SOON)

    server.before = hold
    server.end_watches()
    async with asyncio.timeout(SOON):
        await reached.wait()
    server.before = lambda method, path: None
    with server.state.changed:
        server.state.version += 1
        server.state.oldest = server.state.version
    go_on.set()


async def away(server: Server) -> None:
    """For three requests, without an answer."""
    left = iter(range(3))

    def lose(method: str, path: str) -> None:
        if next(left, None) is not None:
            raise LostError

    server.before = lose
    server.drop_all()


@pytest.mark.parametrize("trouble", [ended, broken, all_connections_broken, forgotten, away])
async def test_over_real_sockets_it_comes_to_the_same_after_any_trouble(emulator: Server, trouble: Trouble) -> None:
    one, other = client_of(emulator), client_of(emulator)
    await other.create(Kind.CONFIGMAPS, a_map("old", team="a"))
    async with kept(one, "team=a") as it:
        await it.until(lambda: "old" in it.held())
        for turn in range(3):
            await trouble(emulator)
            while True:  # the other client's own connections were broken as well
                try:
                    await other.create(Kind.CONFIGMAPS, a_map(f"new-{turn}", team="a"))
                    break
                except KubeUnreachable:
                    continue
            await it.until(lambda turn=turn: f"new-{turn}" in it.held())  # type: ignore[misc]
        assert set(it.held()) == {"old", "new-0", "new-1", "new-2"}
    await one.close()
    await other.close()
