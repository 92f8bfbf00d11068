"""``segue upgrade`` with real engines: others with another KV layout take over, and what is said stays the same."""

from __future__ import annotations

import asyncio
import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.clients import Clients, in_quiet
from tests.chaos.transcript import Ask
from tests.e2e.conftest import running
from tests.e2e.upgrading import AT_A_TIME, Load, pools, upgraded
from tests.ports import free_ports
from tests.ray_nodes import ray_nodes
from tests.workers.support import TINY_ENGINE

KINDS = 12  # of requests, asked again and again
LONGEST = 300  # tokens: several times as long as a drain


def spec() -> dict[str, Any]:
    """One engine for each half, whose streams outlast a drain; all prompts are computed apart."""
    http, rpc, control = free_ports(3)
    pool = {"device": "cpu", "replicas": 1}
    return {
        "cluster": {"name": "engines"},
        "gateway": {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{rpc}", "silence_seconds": 10},
        "controller": {
            "listen": f"127.0.0.1:{control}",
            "drain_timeout": 0.5,
            "rollout": {"health_seconds": 1},
        },
        "models": [
            {
                "name": "m",
                "source": "tiny:llama",
                "engine": TINY_ENGINE,
                "routing": {"prefill": "apart"},
                "pools": {"prefill": dict(pool), "decode": dict(pool)},
            }
        ],
    }


def asked(number: int) -> Ask:
    """Greedy and seeded, one sequence or two, over HTTP and gRPC."""
    prompt = tuple(range(number, number + 40 + 7 * number))
    seed = number if number % 2 else None
    return Ask(
        number, prompt, LONGEST if number % 3 else 20, grpc=number % 4 > 1, n=2 if number % 5 == 0 else 1, seed=seed
    )


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_engines_with_another_kv_layout_take_over_and_streams_go_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a Ray on loopback is found there only so
    config = spec()
    with ray_nodes(3) as address, running(config, tmp_path, "--address", address) as cluster:  # one is a spare's
        wanted = (asked(number) for number in range(1, KINDS + 1))
        known = asyncio.run(in_quiet(Clients(cluster.url, cluster.grpc, "m"), wanted, AT_A_TIME))
        load = Load(cluster, lambda number: replace(known[number % KINDS], number=number))
        with load.under_way():
            changed = copy.deepcopy(config)
            changed["models"][0]["engine"]["block_size"] = 2 * TINY_ENGINE["block_size"]
            upgraded(cluster, changed, tmp_path / "new.yaml")
        assert pools(cluster) == {"prefill": ["m-prefill-0 ready"], "decode": ["m-decode-0 ready"]}
        assert load.wrong() == []
        assert len(load.transcripts) > 2 * KINDS
        logs = "".join(log.read_text() for log in tmp_path.glob("engines/logs/m-decode-*.log"))
        assert re.search(r"worker_drained .* left=[1-9]", logs), "no stream was under way where an engine left"
