"""A pipeline over two Ray nodes, onto which ``segue up`` comes: its tokens are transformers' own, and a plan for what
runs already changes nothing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import RealCluster, running
from tests.e2e.golden import transformers_greedy
from tests.e2e.test_parallel import ask, shipped
from tests.ray_nodes import ray_nodes

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(400)]


def planned(cluster: RealCluster, config: Path) -> dict[str, object]:
    said = cluster.segue("plan", str(config), "--json")
    assert said.returncode == 0, said.stdout + said.stderr
    changes: dict[str, object] = json.loads(said.stdout)["changes"]
    return changes


def test_each_half_of_the_layers_is_on_a_node_of_its_own(
    tiny_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a Ray on loopback is found there only so
    golden = transformers_greedy(tiny_path)
    config = shipped("pipeline-over-nodes.yaml")
    model = config["models"][0]["name"]
    with ray_nodes(2) as address, running(config, tmp_path, "--address", address) as cluster:
        with ThreadPoolExecutor(len(golden)) as threads:
            answers = list(threads.map(lambda one: ask(cluster, model, one.prompt), golden))
        for one, answer in zip(golden, answers, strict=True):
            assert answer == one.output, f"prompt of {len(one.prompt)} tokens"
        assert "it fits: 1 replica on 2 nodes" in (tmp_path / "up.out").read_text()
        slot = f"{model}-serve-0"
        same = planned(cluster, tmp_path / "cluster.yaml")
        assert same == {"added": [], "removed": [], "moved": [], "kept": [slot], "settings": []}
        config["models"][0]["pools"]["serve"]["replicas"] = 2
        (tmp_path / "more.yaml").write_text(yaml.safe_dump(config))
        more = planned(cluster, tmp_path / "more.yaml")
        assert more["added"] == [f"{model}-serve-1"]
        assert more["settings"] == [{"where": f"{model} serve replicas", "was": "1", "now": "2"}]
