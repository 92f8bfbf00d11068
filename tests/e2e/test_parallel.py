"""``segue up`` with the configurations that cut a model: its tokens are those of transformers, and nothing is left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import RealCluster, running
from tests.e2e.golden import OUTPUT_TOKENS, Golden, transformers_greedy
from tests.ports import free_ports
from workers.inventory import descendants, started

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(400)]

CONFIGS = Path(__file__).parents[2] / "configs"
EXTRA = {"ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def golden(tiny_path: str) -> list[Golden]:
    return transformers_greedy(tiny_path)


def shipped(name: str) -> dict[str, Any]:
    """A configuration as it is shipped, on ports that are free."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    http, grpc, controller = (f"127.0.0.1:{port}" for port in free_ports(3))
    return {**config, "gateway": {"http": http, "grpc": grpc}, "controller": {"listen": controller}}


def ask(cluster: RealCluster, model: str, prompt: list[int]) -> list[int]:
    made = cluster.openai.completions.create(
        model=model, prompt=prompt, max_tokens=OUTPUT_TOKENS, temperature=0, extra_body=EXTRA
    )
    ids: list[int] = (made.choices[0].model_extra or {})["token_ids"]
    return ids


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("tensor-parallel.yaml", {}),
        ("pipeline-parallel.yaml", {}),
        ("pipeline-parallel.yaml", {"tensor_parallel": 2}),
        ("tensor-parallel-decode.yaml", {}),
    ],
)
def test_the_tokens_are_transformers_own(
    golden: list[Golden], name: str, over: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = shipped(name)
    config["models"][0]["pools"].get("serve", {}).update(over)
    model = config["models"][0]["name"]
    with running(config, tmp_path_factory.mktemp("cut")) as cluster, ThreadPoolExecutor(len(golden)) as threads:
        family = descendants(cluster.owner)
        answers = list(threads.map(lambda one: ask(cluster, model, one.prompt), golden))
    for one, answer in zip(golden, answers, strict=True):
        assert answer == one.output, f"prompt of {len(one.prompt)} tokens"
    assert not [pid for pid in family if started(pid)]
