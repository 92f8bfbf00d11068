"""How the controller finds the API server in a pod: by what is mounted there, over TLS."""

from __future__ import annotations

import datetime
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.controller.kube.client import KubeClient, in_cluster
from orchestrator.controller.kube.ports import Kind, KubeUnreachable
from orchestrator.core.errors import ConfigError
from tests.kube.account import TOKEN, mount
from tests.kube.emulator.kinds import Schemas
from tests.kube.emulator.server import Server, serving
from tests.kube.emulator.state import State
from tests.kube.schemas import Kubernetes
from tests.kube.test_client_contract import a_map
from tests.kube.tools import NEWEST, Tools


@pytest.fixture
def guarded(tools: Tools, schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An API server that asks for the token in ``tmp_path``."""
    with serving(State(schemas, Kubernetes(tools, NEWEST)), mount(tmp_path)) as server:
        server.access.token = TOKEN
        host, port = server.server_address[:2]
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(host))
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        yield server
    assert not server.failures
    assert not [each.name for each in threading.enumerate() if "process_request" in each.name]


@pytest.fixture
async def client(guarded: Server, tmp_path: Path) -> AsyncIterator[KubeClient]:
    client = in_cluster(tmp_path)
    yield client
    await client.close()


async def test_by_the_mounted_token_over_tls(client: KubeClient) -> None:
    assert client.namespace == "llm"
    await client.create(Kind.CONFIGMAPS, a_map("one"))
    assert await client.get(Kind.CONFIGMAPS, "one") is not None


async def test_a_token_that_is_exchanged_is_read_again(
    guarded: Server, client: KubeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes exchanges it within the hour."""
    await client.list(Kind.CONFIGMAPS)
    guarded.access.token = "and-" + TOKEN
    (tmp_path / "token").write_text("and-" + TOKEN, encoding="utf-8")
    with pytest.raises(KubeUnreachable, match="does not know this pod's ServiceAccount"):
        await client.list(Kind.CONFIGMAPS)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime.now(tz) + datetime.timedelta(minutes=2)

    loader = "kubernetes.aio.config.incluster_config.datetime"
    monkeypatch.setattr(loader, type("Times", (), {"datetime": Later, "timedelta": datetime.timedelta}))
    await client.list(Kind.CONFIGMAPS)


async def test_another_server_is_not_spoken_to(guarded: Server, tmp_path: Path) -> None:
    mount(tmp_path)  # another certificate than the one that the server has
    client = in_cluster(tmp_path)
    with pytest.raises(KubeUnreachable, match="certificate"):
        await client.get(Kind.CONFIGMAPS, "one")
    await client.close()


@pytest.mark.parametrize("missing", ["token", "ca.crt", "namespace"])
def test_what_is_not_mounted_is_said(guarded: Server, tmp_path: Path, missing: str) -> None:
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=r"not in a pod of Kubernetes.*automountServiceAccountToken"):
        in_cluster(tmp_path)
