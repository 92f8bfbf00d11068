"""Whatever answers in the API server's place, what is kept up goes on asking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from orchestrator.controller.kube.client import KubeClient
from orchestrator.controller.kube.lease import Lease
from orchestrator.controller.kube.mirror import Mirror
from orchestrator.controller.kube.owner import Owner
from orchestrator.controller.kube.ports import Kind, KubePort, KubeUnreachable, Listing
from orchestrator.controller.kube.trouble import Trouble
from tests.kube.fake import FakeKube
from tests.kube.test_client_contract import SOON

LONG = "86400"  # seconds
RUBBISH = [
    "[]",
    "{}",
    "null",
    '"maintenance"',
    "<html>maintenance</html>",
    '{"metadata": null}',
    '{"metadata": {}}',
    '{"metadata": {"resourceVersion": "7"}, "spec": "x"}',
    '{"metadata": {"resourceVersion": "7"}, "items": [{"a": 1}]}',
]


@dataclass
class Proxy:
    """Says the same to everybody; ``asked`` is set by each request."""

    says: str = "{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    port: int = 0
    more: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, _: web.Request) -> web.Response:
        self.requests += 1
        self.more.set()
        return web.Response(text=self.says, content_type="application/json", status=self.status, headers=self.headers)

    async def asked(self, times: int) -> None:
        async with asyncio.timeout(SOON):
            while self.requests < times:
                self.more.clear()
                await self.more.wait()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    it = Proxy()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", it.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    it.port = runner.addresses[0][1]
    yield it
    await runner.cleanup()


@pytest.fixture
async def kube(proxy: Proxy) -> AsyncIterator[KubeClient]:
    client = KubeClient(Configuration(host=f"http://127.0.0.1:{proxy.port}"), "llm")
    yield client
    await client.close()


async def _no_pause(_: float) -> None:
    await asyncio.sleep(0)


def _lease(kube: KubePort) -> Coroutine[Any, Any, None]:
    return Lease(kube, Owner(kube, "r-segue"), "me", sleep=_no_pause).keep()


def _mirror(kube: KubePort) -> Coroutine[Any, Any, None]:
    return Mirror(kube, Kind.PODS, sleep=_no_pause).run()


@pytest.mark.parametrize("says", RUBBISH)
@pytest.mark.parametrize("kept_up", [_lease, _mirror])
async def test_what_is_kept_up_outlives_any_answer(
    proxy: Proxy, kube: KubeClient, says: str, kept_up: Callable[[KubePort], Coroutine[Any, Any, None]]
) -> None:
    proxy.says = says
    task = asyncio.create_task(kept_up(kube))
    asked = asyncio.create_task(proxy.asked(6))
    await asyncio.wait([task, asked], return_when=asyncio.FIRST_COMPLETED)
    assert not task.done(), task
    asked.result()
    task.cancel()
    await asyncio.wait([task])


async def test_a_list_that_was_rubbish_for_a_while_is_right_again_afterwards() -> None:
    class Between(FakeKube):
        lists = 0

        async def list(self, kind: Kind, selector: str = "") -> Listing:
            self.lists += 1
            return Listing(({"no": "metadata"},), "9") if self.lists < 3 else await super().list(kind, selector)

    kube = Between()
    await kube.create(Kind.PODS, {"metadata": {"name": "p"}})
    mirror = Mirror(kube, Kind.PODS, sleep=_no_pause)
    task = asyncio.create_task(mirror.run())
    assert await mirror.fresh(SOON)
    assert [each["metadata"]["name"] for each in mirror.items] == ["p"]
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(("after", "seconds"), [("7", 7.0), ("²", None), ("soon", None)])
async def test_how_long_to_wait_is_read_where_it_is_a_number(
    proxy: Proxy, kube: KubeClient, after: str, seconds: float | None
) -> None:
    proxy.status, proxy.headers = 429, {"Retry-After": after}
    with pytest.raises(KubeUnreachable) as caught:
        await kube.get(Kind.LEASES, "x")
    assert caught.value.retry_after == seconds


def test_nobody_is_told_to_stay_away_for_a_day() -> None:
    assert Trouble("x").hit(KubeUnreachable("busy", retry_after=float(LONG))) == 60.0


async def test_a_token_that_can_not_be_read_is_trouble_and_is_read_again(proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one")
    (tmp_path / "ca.crt").write_text("ca")
    port = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(proxy.port)}
    loader = InClusterConfigLoader(str(tmp_path / "token"), str(tmp_path / "ca.crt"), environ=port)
    configuration = Configuration()
    loader.load_and_set(configuration)
    configuration.ssl_ca_cert = None
    loader.host, loader.ssl_ca_cert = f"http://127.0.0.1:{proxy.port}", None
    client = KubeClient(configuration, "llm")
    proxy.says = '{"metadata": {"resourceVersion": "7"}}'
    loader.token_expires_at = loader.token_expires_at.min
    (tmp_path / "token").write_text("")
    with pytest.raises(KubeUnreachable, match="token"):
        await client.get(Kind.LEASES, "x")
    (tmp_path / "token").write_text("two")
    assert await client.get(Kind.LEASES, "x") is not None
    await client.close()
