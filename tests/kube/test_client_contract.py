"""What the rest may rely on of an API server: the fake in memory, and the real client against the emulator."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from orchestrator.controller.kube.client import KubeClient
from orchestrator.controller.kube.ports import (
    Change,
    Expired,
    Kind,
    KubeConflict,
    KubeForbidden,
    KubePort,
    KubeRefused,
    KubeUnreachable,
)
from tests.kube.emulator.server import LostError, Server
from tests.kube.emulator.state import RefusedError
from tests.kube.fake import FakeKube

SOON = 20.0  # seconds


def a_map(name: str, text: str = "x", **labels: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "llm", "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": text}}


def client_of(server: Server) -> KubeClient:
    return KubeClient(Configuration(host=server.url), "llm")


@pytest.fixture
async def real(emulator: Server) -> AsyncIterator[KubeClient]:
    client = client_of(emulator)
    yield client
    await client.close()


@pytest.fixture(params=["fake", "real"])
async def kube(request: pytest.FixtureRequest) -> AsyncIterator[KubePort]:
    if request.param == "fake":
        yield FakeKube()
        return
    client = client_of(request.getfixturevalue("emulator"))
    yield client
    await client.close()


async def test_what_is_written_is_read(kube: KubePort) -> None:
    assert await kube.get(Kind.CONFIGMAPS, "one") is None
    made = await kube.create(Kind.CONFIGMAPS, a_map("one"))
    assert made["metadata"]["namespace"] == kube.namespace
    changed = {**made, "data": {"a": "y"}}
    written = await kube.replace(Kind.CONFIGMAPS, changed)
    assert written["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    read = await kube.get(Kind.CONFIGMAPS, "one")
    assert read is not None
    assert read["data"] == {"a": "y"}
    assert read["metadata"]["resourceVersion"] == written["metadata"]["resourceVersion"]
    with pytest.raises(KubeConflict):
        await kube.create(Kind.CONFIGMAPS, a_map("one"))
    with pytest.raises(KubeConflict):
        await kube.replace(Kind.CONFIGMAPS, changed)


async def test_a_patch_is_carried_out_only_on_what_was_seen(kube: KubePort) -> None:
    made = await kube.create(Kind.CONFIGMAPS, a_map("one"))
    seen = {"op": "test", "path": "/metadata/resourceVersion", "value": made["metadata"]["resourceVersion"]}
    done = await kube.patch(Kind.CONFIGMAPS, "one", [seen, {"op": "replace", "path": "/data/a", "value": "y"}])
    assert done["data"] == {"a": "y"}
    with pytest.raises(KubeConflict):
        await kube.patch(Kind.CONFIGMAPS, "one", [seen, {"op": "replace", "path": "/data/a", "value": "z"}])
    read = await kube.get(Kind.CONFIGMAPS, "one")
    assert read is not None
    assert read["data"] == {"a": "y"}


async def test_a_list_goes_by_labels_and_says_where_to_watch_from(kube: KubePort) -> None:
    for name, team in (("one", "a"), ("two", "b"), ("three", "a")):
        await kube.create(Kind.CONFIGMAPS, a_map(name, team=team))
    listing = await kube.list(Kind.CONFIGMAPS, "team=a")
    assert {each["metadata"]["name"] for each in listing.items} == {"one", "three"}
    assert len((await kube.list(Kind.CONFIGMAPS)).items) == 3
    assert not (await kube.list(Kind.PODS)).items
    watch = kube.watch(Kind.CONFIGMAPS, "team=a", listing.version)
    await kube.create(Kind.CONFIGMAPS, a_map("four", team="b"))
    made = await kube.create(Kind.CONFIGMAPS, a_map("five", team="a"))
    await kube.replace(Kind.CONFIGMAPS, {**made, "data": {"a": "y"}})
    async with asyncio.timeout(SOON):
        seen = [await anext(watch), await anext(watch)]
    assert [(each.type, each.object["metadata"]["name"]) for each in seen] == [("ADDED", "five"), ("MODIFIED", "five")]
    assert seen[1].object["data"] == {"a": "y"}
    later = kube.watch(Kind.CONFIGMAPS, "", seen[0].version)
    async with asyncio.timeout(SOON):
        assert (await anext(later)).type == "MODIFIED", "not again what was seen already"


async def next_of(watch: AsyncIterator[Change]) -> Change | None:
    """None where it ended. Bookmarks are passed over."""
    async with asyncio.timeout(SOON):
        async for change in watch:
            if change.type != "BOOKMARK":
                return change
    return None


async def test_a_watch_ends_when_the_server_ends_it(emulator: Server, real: KubeClient) -> None:
    listing = await real.list(Kind.CONFIGMAPS)
    watch = real.watch(Kind.CONFIGMAPS, "", listing.version)
    await real.create(Kind.CONFIGMAPS, a_map("one"))
    first = await next_of(watch)
    assert first is not None
    emulator.end_watches()
    assert await next_of(watch) is None


async def test_a_watch_that_breaks_is_no_watch_that_ended(emulator: Server, real: KubeClient) -> None:
    listing = await real.list(Kind.CONFIGMAPS)
    watch = real.watch(Kind.CONFIGMAPS, "", listing.version)
    await real.create(Kind.CONFIGMAPS, a_map("one"))
    await next_of(watch)
    emulator.end_watches(dropping=True)
    with pytest.raises(KubeUnreachable):
        await next_of(watch)


@pytest.mark.parametrize("told_by", ["a status", "an event"])
async def test_a_watch_from_too_long_ago_has_expired(emulator: Server, real: KubeClient, told_by: str) -> None:
    await real.create(Kind.CONFIGMAPS, a_map("one"))
    if told_by == "an event":
        emulator.state.oldest = emulator.state.version + 1
    else:
        emulator.before = raising(RefusedError(410, "Expired", "too old resource version"))
    with pytest.raises(Expired):
        await next_of(real.watch(Kind.CONFIGMAPS, "", "1"))


def raising(error: Exception) -> Any:
    def hook(method: str, path: str) -> None:
        raise error

    return hook


@pytest.mark.parametrize("code", [429, 500, 503, 504])
async def test_a_server_in_trouble_is_one_that_can_not_be_reached(
    emulator: Server, real: KubeClient, code: int
) -> None:
    emulator.before = raising(RefusedError(code, "Trouble", "later", {"Retry-After": "7"}))
    with pytest.raises(KubeUnreachable, match="later") as raised:
        await real.get(Kind.CONFIGMAPS, "one")
    assert raised.value.retry_after == 7


async def test_a_lost_answer_is_told_though_it_was_carried_out(emulator: Server, real: KubeClient) -> None:
    emulator.after = raising(LostError())
    with pytest.raises(KubeUnreachable):
        await real.create(Kind.CONFIGMAPS, a_map("one"))
    emulator.after = lambda method, path: None
    assert await real.get(Kind.CONFIGMAPS, "one") is not None


async def test_nobody_there() -> None:
    client = KubeClient(Configuration(host="http://127.0.0.1:9"), "llm")
    with pytest.raises(KubeUnreachable, match="does not answer"):
        await client.get(Kind.CONFIGMAPS, "one")
    with pytest.raises(KubeUnreachable):
        await next_of(client.watch(Kind.CONFIGMAPS, "", "1"))
    await client.close()


async def test_a_missing_right_says_which_and_where_it_comes_from(emulator: Server, real: KubeClient) -> None:
    emulator.access.bind("segue", "system:serviceaccount:llm:r-segue", [])
    with pytest.raises(KubeForbidden) as raised:
        await real.list(Kind.LEASES)
    told = str(raised.value)
    assert "system:serviceaccount:llm:r-segue may not list leases.coordination.k8s.io" in told
    assert "namespace llm" in told
    assert "kubernetes.enabled" in told
    with pytest.raises(KubeForbidden, match=r"watch nodes.*kubernetes\.readNodes"):
        await next_of(real.watch(Kind.NODES, "", "1"))


async def test_what_is_wrong_in_itself_is_refused(real: KubeClient) -> None:
    wrong = a_map("one")
    wrong["data"] = {"a": 1}
    with pytest.raises(KubeRefused, match="data"):
        await real.create(Kind.CONFIGMAPS, wrong)
    made = await real.create(Kind.CONFIGMAPS, a_map("two"))
    with pytest.raises(KubeRefused):
        await real.patch(Kind.CONFIGMAPS, "two", [{"op": "replace", "path": "/data/none/x", "value": "y"}])
    gone = copy.deepcopy(dict(made))
    gone["metadata"]["name"] = "three"
    with pytest.raises(KubeRefused, match="404"):
        await real.replace(Kind.CONFIGMAPS, gone)


async def test_what_is_not_an_api_server() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        client = KubeClient(Configuration(host=f"http://{host}:{port}"), "llm")
        with pytest.raises(KubeUnreachable, match="no API server"):
            await client.get(Kind.CONFIGMAPS, "one")
        with pytest.raises(KubeUnreachable, match="can't be read"):
            await next_of(client.watch(Kind.CONFIGMAPS, "", "1"))
        await client.close()
