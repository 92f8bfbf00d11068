"""``segue upgrade`` as a platform engineer has it: under load, replica by replica, and nobody who asks notices."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos.clients import Clients
from tests.chaos.transcript import DONE, Ask, Transcript
from tests.e2e.conftest import RealCluster, running
from tests.ports import free_ports

UPGRADE_SECONDS = 400
AT_A_TIME = 6
LONGEST = 150  # tokens: three seconds, three times as long as a drain


def spec() -> dict[str, Any]:
    """Mock workers apart, twice each, whose streams outlast a drain; all prompts are computed apart."""
    http, rpc, control = free_ports(3)
    engine = {"step_seconds": 0.02, "restores": True, "max_model_len": 512, "block_size": 16}
    pool = {"backend": "mock", "replicas": 2}
    return {
        "cluster": {"name": "upgraded"},
        "gateway": {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{rpc}"},
        "controller": {
            "listen": f"127.0.0.1:{control}",
            "drain_timeout": 1,
            "rollout": {"health_seconds": 1},
        },
        "models": [
            {
                "name": "m",
                "source": "tiny:llama",
                "engine": engine,
                "routing": {"prefill": "apart"},
                "pools": {"prefill": dict(pool), "decode": dict(pool)},
            }
        ],
    }


class Load:
    """Streams over HTTP connections that stay open, and over gRPC, until it is told to end."""

    def __init__(self, cluster: RealCluster) -> None:
        self._clients = Clients(cluster.url, cluster.grpc, "m")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._clients.run(self._asks(), AT_A_TIME)))

    def _asks(self) -> Iterator[Ask]:
        number = 0
        while not self._ends.is_set():
            number += 1
            prompt = tuple(range(1000 + number, 1000 + number + 40 + number % 60))
            yield Ask(number, prompt, LONGEST if number % 3 else 20, grpc=number % 2 == 0)

    @property
    def transcripts(self) -> list[Transcript]:
        return self._clients.transcripts

    @contextmanager
    def under_way(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ends.set()
            self._thread.join(60)

    def wrong(self) -> list[str]:
        """Requests that did not come through in one go with the tokens of a quiet run."""
        found = []
        for transcript in self.transcripts:
            first, *again = transcript.attempts
            if again or first.ends != [DONE] or first.tokens.get(0) != transcript.ask.expected():
                found.append(
                    f"{transcript.ask.number}: {first.ends}, {len(again)} again, {len(first.tokens.get(0, []))}"
                )
        return found


def upgraded(cluster: RealCluster, config: dict[str, Any], file: Path, code: int = 0, *options: str) -> str:
    file.write_text(yaml.safe_dump(config))
    said = cluster.segue("upgrade", str(file), *options, timeout=UPGRADE_SECONDS)
    assert said.returncode == code, said.stdout + said.stderr
    return said.stdout + said.stderr


def pools(cluster: RealCluster) -> dict[str, list[str]]:
    (model,) = [model for model in cluster.status()["models"] if model["name"] == "m"]
    return {pool["role"]: [f"{one['id']} {one['state']}" for one in pool["workers"]] for pool in model["pools"]}


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_cluster_under_load_changes_grows_shrinks_and_goes_back_and_no_request_fails(tmp_path: Path) -> None:
    config, file = spec(), tmp_path / "new.yaml"
    with running(config, tmp_path) as cluster:
        load = Load(cluster)
        with load.under_way():
            changed = copy.deepcopy(config)
            changed["models"][0]["engine"]["kv_block_bytes"] = 1 << 15  # engines of before can't take this KV
            said = upgraded(cluster, changed, file, 0, "--dry-run")
            assert "m engine.kv_block_bytes: - -> 32768" in said
            assert cluster.status()["rollout"] is None
            upgraded(cluster, changed, file)
            there = {
                "prefill": ["m-prefill-0 ready", "m-prefill-1 ready"],
                "decode": ["m-decode-0 ready", "m-decode-1 ready"],
            }
            assert pools(cluster) == there
            assert json.loads((tmp_path / "upgraded" / "run.json").read_text())["config"] == str(file)

            grown = copy.deepcopy(changed)
            grown["models"][0]["pools"]["decode"]["replicas"] = 3
            upgraded(cluster, grown, file)
            assert len(pools(cluster)["decode"]) == 3
            grown["models"][0]["pools"]["decode"]["replicas"] = 2
            upgraded(cluster, grown, file)
            assert pools(cluster) == there

            bad = copy.deepcopy(changed)
            bad["models"][0]["pools"]["decode"]["engine"] = {"start_seconds": "soon"}
            upgraded(cluster, bad, file, 2)  # the configuration itself is wrong
            bad["models"][0]["pools"]["decode"]["engine"] = {"start_seconds": 300}
            bad["controller"]["start_timeout"] = 20
            said = upgraded(cluster, bad, file, 1)
            assert "rolled back: m-decode-spare-0 failed 2 times: not ready after 20 s" in said
            assert pools(cluster) == there
            assert cluster.status()["rollout"]["state"] == "rolled back"
        assert load.wrong() == []
        assert len(load.transcripts) > 30
