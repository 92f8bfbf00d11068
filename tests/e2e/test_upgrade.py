"""``segue upgrade`` as a platform engineer has it: under load, replica by replica, and nobody who asks notices."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.transcript import Ask
from tests.e2e.conftest import running
from tests.e2e.upgrading import Load, pools, upgraded
from tests.ports import free_ports

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


def asked(number: int) -> Ask:
    prompt = tuple(range(1000 + number, 1000 + number + 40 + number % 60))
    return Ask(number, prompt, LONGEST if number % 3 else 20, grpc=number % 2 == 0)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_cluster_under_load_changes_grows_shrinks_and_goes_back_and_no_request_fails(tmp_path: Path) -> None:
    config, file = spec(), tmp_path / "new.yaml"
    with running(config, tmp_path) as cluster:
        load = Load(cluster, asked)
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
